{{/*
The cell's configuration, one for all its pods: the user's `config` under what the chart works out. JSON.
*/}}
{{- define "moonshard.cellConfig" -}}
{{- $metrics := .Values.monitoring.port -}}
{{- $own := dict
    "checkpoint" (include "moonshard.checkpoint" .)
    "model_name" .Values.modelName
    "num_shards" .Values.experts.shards
    "num_attention" (int (include "moonshard.numAttention" .))
    "links" "tcp"
    "run_dir" "/run/moonshard"
    "collective_address" (printf "%s-expert-r0-0.%s-expert.%s.svc:%d" (include "moonshard.fullname" .) (include "moonshard.fullname" .) .Release.Namespace (int .Values.network.collectivePort))
    "router" (dict "host" "0.0.0.0" "port" .Values.router.port)
    "metrics" (dict "host" "0.0.0.0" "base_port" $metrics "worker_port" $metrics)
    "network" (dict "bind_host" "0.0.0.0" "link_port" .Values.experts.port)
    "timeouts" (dict "drain_s" .Values.router.maxWaitForDrainSeconds)
-}}
{{- if .Values.attention.autoscaling.enabled -}}
  {{- /* The cell serves with as many as the autoscaler leaves; the most it may start still have a place. */ -}}
  {{- $_ := set $own "min_attention" .Values.attention.autoscaling.minReplicas -}}
{{- end -}}
{{- if .Values.ray.enabled -}}
  {{- /* Several workers may share a Ray pod, so each has ports of its own. */ -}}
  {{- $_ := set $own "network" (dict "bind_host" "0.0.0.0" "link_port" 0) -}}
  {{- $_ := set $own "metrics" (dict "host" "0.0.0.0" "base_port" $metrics "worker_port" 0) -}}
{{- end -}}
{{- if gt (int .Values.experts.replicas) 1 -}}
  {{- $_ := set $own "num_replicas" .Values.experts.replicas -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
  {{- $_ := set $own.router "tls_cert" "/etc/moonshard-tls/tls.crt" -}}
  {{- $_ := set $own.router "tls_key" "/etc/moonshard-tls/tls.key" -}}
  {{- $_ := set $own.router "tls_ca" "/etc/moonshard-tls/ca.crt" -}}
  {{- if .Values.tls.mutual -}}
    {{- $_ := set $own.router "tls_client_ca" "/etc/moonshard-tls/ca.crt" -}}
    {{- $_ := set $own.router "tls_worker_cert" "/etc/moonshard-tls/tls.crt" -}}
    {{- $_ := set $own.router "tls_worker_key" "/etc/moonshard-tls/tls.key" -}}
  {{- end -}}
{{- end -}}
{{- if .Values.auth.existingSecret -}}
  {{- $_ := set $own.router "api_keys_file" "/etc/moonshard-auth/api-keys" -}}
  {{- /* The gateway checks the same keys, but cannot hand them on. */ -}}
  {{- $_ := set $own.router "open_gateway" .Values.gateway.enabled -}}
  {{- with .Values.auth.operatorKey -}}
    {{- $_ := set $own.router "operator_key_file" "/etc/moonshard-auth/operator-key" -}}
  {{- end -}}
{{- end -}}
{{- $defaults := dict
    "timeouts" (dict "join_s" 900)
    "attention" (dict "num_threads" (include "moonshard.cores" (.Values.attention.resources.requests | default dict).cpu | int))
    "experts" (dict "num_threads" (include "moonshard.cores" (.Values.experts.resources.requests | default dict).cpu | int))
-}}
{{- mergeOverwrite $defaults (deepCopy .Values.config) $own | toPrettyJson -}}
{{- end -}}
