{{/* Whole cores of a CPU quantity, at least one: threads of a worker whose configuration names none. */}}
{{- define "moonshard.cores" -}}
{{- $cpu := toString (. | default "1") -}}
{{- if hasSuffix "m" $cpu -}}
{{- max 1 (div (trimSuffix "m" $cpu | int) 1000) -}}
{{- else -}}
{{- max 1 (int (float64 $cpu)) -}}
{{- end -}}
{{- end -}}

{{/*
The pod template of a worker. Takes root, component (attention or expert), pod, ports (a list of name and port),
grace, drain (flags of `moonshard drain` before the pod ends; empty for none).
*/}}
{{- define "moonshard.workerTemplate" -}}
{{- $rdma := eq .root.Values.network.profile "rdma" -}}
{{- $metadata := dict "root" .root "component" .component "pod" .pod "config" true -}}
{{- if $rdma -}}{{- $_ := set $metadata "annotations" .root.Values.network.rdma.annotations -}}{{- end -}}
{{- $volumes := dict "root" .root "pod" .pod "weights" true "sharedMemory" .pod.sharedMemory "auth" (list "operator-key") -}}
metadata:
  {{- include "moonshard.podMetadata" $metadata | nindent 2 }}
spec:
  {{- include "moonshard.podSpec" (dict "root" .root "component" .component "pod" .pod "grace" .grace "worker" true) | nindent 2 }}
  {{- with include "moonshard.initContainers" . }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "moonshard.image" (dict "root" .root "image" .root.Values.image) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: [python, -m, moonshard.{{ eq .component "expert" | ternary "experts" "attention" }}]
      args:
        - --config=/etc/moonshard/cell.json
        - --rank=$(RANK)
        - --router={{ include "moonshard.controlHost" .root }}:{{ .root.Values.router.port }}
        - --advertise=$(POD_IP)
        {{- with .pod.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- include "moonshard.containerEnv" (dict "root" .root "pod" .pod "own" (fromYamlArray (include "moonshard.workerEnv" .root))) | trim | nindent 6 }}
      ports:
        {{- range .ports }}
        - {name: {{ .name }}, containerPort: {{ .port }}}
        {{- end }}
        - {name: metrics, containerPort: {{ .root.Values.monitoring.port }}}
      {{- include "moonshard.probes" (dict "probes" .pod.probes "startupPath" "/readyz") | nindent 6 }}
      {{- if .drain }}
      lifecycle:
        preStop:
          exec:
            # The number is in RANK. What it cannot do (the last attention worker) is refused at once, and the pod ends as it is.
            command: {{ toJson (concat (list "moonshard" "drain" .component) .drain (list "--config=/etc/moonshard/cell.json" (printf "--router=%s:%d" (include "moonshard.controlHost" .root) (int .root.Values.router.port)))) }}
      {{- end }}
      resources:
        {{- include "moonshard.resources" (dict "resources" .pod.resources "devices" (fromJson (include "moonshard.devices" .))) | nindent 8 }}
      securityContext:
        {{- include "moonshard.containerSecurity" (dict "root" .root "worker" true) | nindent 8 }}
      volumeMounts:
        {{- include "moonshard.volumeMounts" $volumes | nindent 8 }}
    {{- with .pod.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "moonshard.volumes" $volumes | nindent 4 }}
{{- end -}}

{{/* A worker's own variables: its number is its pod's, its address its pod's. */}}
{{- define "moonshard.workerEnv" -}}
- name: RANK
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- if eq .Values.network.profile "rdma" }}
{{- with .Values.network.rdma }}
- {name: NCCL_SOCKET_IFNAME, value: {{ .interface | quote }}}
- {name: GLOO_SOCKET_IFNAME, value: {{ .interface | quote }}}
{{- with .hca }}
- {name: NCCL_IB_HCA, value: {{ . | quote }}}
{{- end }}
{{- with .gidIndex }}
- {name: NCCL_IB_GID_INDEX, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What cannot work together is refused here, by the names of the settings. */}}
{{- define "moonshard.check" -}}
{{- include "moonshard.checkKeys" . -}}
{{- $gpus := or .Values.attention.gpus .Values.experts.gpus -}}
{{- if and $gpus (ne (include "moonshard.transport" .) "all_to_all") -}}
{{- include "moonshard.refuse" "config.transport: must be all_to_all where attention.gpus or experts.gpus is not 0" -}}
{{- end -}}
{{- if and (eq (include "moonshard.transport" .) "all_to_all") (gt (int .Values.experts.replicas) 1) -}}
{{- include "moonshard.refuse" "experts.replicas: transport all_to_all has one copy of each shard, use links" -}}
{{- end -}}
{{- if and .Values.attention.autoscaling.enabled (eq (include "moonshard.transport" .) "all_to_all") -}}
{{- include "moonshard.refuse" "attention.autoscaling: the group of all_to_all has a fixed number of workers, use links" -}}
{{- end -}}
{{- if and .Values.attention.autoscaling.enabled .Values.ray.enabled -}}
{{- include "moonshard.refuse" "attention.autoscaling: on Ray the number of attention workers is fixed, set attention.replicas" -}}
{{- end -}}
{{- range $component := list "attention" "gateway" -}}
{{- $auto := (index $.Values $component).autoscaling -}}
{{- if and $auto.enabled (gt (int $auto.minReplicas) (int $auto.maxReplicas)) -}}
{{- include "moonshard.refuse" (printf "%s.autoscaling.minReplicas: must be at most maxReplicas = %d, got %d" $component (int $auto.maxReplicas) (int $auto.minReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) (not .Values.tls.issuerRef.name) -}}
{{- include "moonshard.refuse" "tls: needs existingSecret, or issuerRef.name for cert-manager" -}}
{{- end -}}
{{- end -}}
