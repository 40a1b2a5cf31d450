{{- define "moonshard.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Takes root and worker: RDMA needs to lock memory, nothing else needs anything. */}}
{{- define "moonshard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
  {{- if and .worker (eq .root.Values.network.profile "rdma") }}
  add: [IPC_LOCK]
  {{- end }}
{{- end -}}

{{/* The environment as a YAML list. Takes own (a list) and extra: a name in extra replaces the chart's own; twice is an error. */}}
{{- define "moonshard.env" -}}
{{- $names := list -}}
{{- range .extra -}}
  {{- if has .name $names -}}{{- include "moonshard.refuse" (printf "extraEnv: %s is given twice" .name) -}}{{- end -}}
  {{- $names = append $names .name -}}
{{- end -}}
{{- $all := list -}}
{{- range .own -}}
  {{- if not (has .name $names) -}}{{- $all = append $all . -}}{{- end -}}
{{- end -}}
{{- with concat $all .extra -}}{{- toYaml . -}}{{- end -}}
{{- end -}}

{{/* Requests and limits with every quantity a string, and devices added to both. Takes resources and devices (a dict). */}}
{{- define "moonshard.resources" -}}
{{- $result := dict -}}
{{- range $kind := list "requests" "limits" -}}
  {{- $quantities := dict -}}
  {{- range $name, $quantity := (index $.resources $kind | default dict) -}}
    {{- $_ := set $quantities $name (toString $quantity) -}}
  {{- end -}}
  {{- range $name, $quantity := $.devices -}}
    {{- $_ := set $quantities $name (toString $quantity) -}}
  {{- end -}}
  {{- if $quantities -}}{{- $_ := set $result $kind $quantities -}}{{- end -}}
{{- end -}}
{{- with $.resources.claims -}}{{- $_ := set $result "claims" . -}}{{- end -}}
{{- toYaml $result -}}
{{- end -}}

{{/* Devices of a worker: GPUs and, in the rdma profile, the network card. Takes root and pod. */}}
{{- define "moonshard.devices" -}}
{{- $devices := dict -}}
{{- if .pod.gpus -}}{{- $_ := set $devices .pod.gpuResource (toString .pod.gpus) -}}{{- end -}}
{{- if eq .root.Values.network.profile "rdma" -}}
  {{- $_ := set $devices .root.Values.network.rdma.resource (toString .root.Values.network.rdma.count) -}}
{{- end -}}
{{- toJson $devices -}}
{{- end -}}

{{/* Takes probes; all of them ask the metrics port over plain HTTP, which works whatever TLS the data ports speak. */}}
{{- define "moonshard.probes" -}}
startupProbe:
  httpGet: {path: {{ .startupPath | default "/livez" }}, port: {{ .port | default "metrics" }}}
  periodSeconds: {{ .probes.startup.periodSeconds }}
  failureThreshold: {{ .probes.startup.failureThreshold }}
livenessProbe:
  httpGet: {path: {{ .livePath | default "/livez" }}, port: {{ .port | default "metrics" }}}
  periodSeconds: {{ .probes.liveness.periodSeconds }}
  timeoutSeconds: {{ .probes.liveness.timeoutSeconds }}
  failureThreshold: {{ .probes.liveness.failureThreshold }}
readinessProbe:
  httpGet: {path: {{ .readyPath | default "/readyz" }}, port: {{ .port | default "metrics" }}}
  periodSeconds: {{ .probes.readiness.periodSeconds }}
  timeoutSeconds: {{ .probes.readiness.timeoutSeconds }}
  failureThreshold: {{ .probes.readiness.failureThreshold }}
{{- end -}}

{{/* metadata of a pod template. Takes root, component, pod, config (whether it reads the cell's configuration), annotations. */}}
{{- define "moonshard.podMetadata" -}}
labels:
  {{- include "moonshard.selector" . | nindent 2 }}
  app.kubernetes.io/part-of: moonshard
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .pod.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $own := dict -}}
{{- if .config -}}
  {{- $_ := set $own "checksum/config" (include "moonshard.cellConfig" .root | sha256sum) -}}
{{- end -}}
{{- with merge (dict) (.pod.podAnnotations | default dict) (.annotations | default dict) $own .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Everything of a pod spec that has nothing to do with its containers. Takes root, component, pod, grace, worker. */}}
{{- define "moonshard.podSpec" -}}
serviceAccountName: {{ include "moonshard.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
securityContext:
  {{- include "moonshard.podSecurity" .root | nindent 2 }}
{{- if and .worker (eq .root.Values.network.profile "hostNetwork") }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .pod.tolerations }}
{{- if and .pod.gpus (not $tolerations) }}
{{- $tolerations = list (dict "key" .pod.gpuResource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .pod.topologySpreadConstraints }}
  {{- toYaml .pod.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "moonshard.selector" . | nindent 8 }}
  {{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .pod.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .pod.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Of the Secret with keys, those that a pod may read. Takes root and auth (a list of api-keys, operator-key, client-key). */}}
{{- define "moonshard.authItems" -}}
{{- $auth := .root.Values.auth -}}
{{- if $auth.existingSecret -}}
{{- $keys := dict "api-keys" $auth.key "operator-key" $auth.operatorKey "client-key" $auth.clientKey -}}
{{- range $path := .auth -}}
{{- with index $keys $path }}
- {key: {{ . }}, path: {{ $path }}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Volumes that every program of ours mounts. Takes root, pod, weights, sharedMemory, auth (which keys). */}}
{{- define "moonshard.volumes" -}}
- name: config
  configMap:
    name: {{ include "moonshard.fullname" .root }}-config
- name: run
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- with .sharedMemory }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ . | quote }}
{{- end }}
{{- if .weights }}
- {{ include "moonshard.weightsVolume" .root | nindent 2 | trim }}
{{- end }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "moonshard.tlsSecret" .root }}
    defaultMode: 0440
{{- end }}
{{- with include "moonshard.authItems" . }}
- name: auth
  secret:
    secretName: {{ $.root.Values.auth.existingSecret }}
    defaultMode: 0440
    items:
      {{- . | nindent 6 }}
{{- end }}
{{- with .pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes the same as the volumes. */}}
{{- define "moonshard.volumeMounts" -}}
- {name: config, mountPath: /etc/moonshard, readOnly: true}
- {name: run, mountPath: /run/moonshard}
- {name: tmp, mountPath: /tmp}
{{- if .sharedMemory }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if .weights }}
- {name: weights, mountPath: /weights, readOnly: true}
{{- end }}
{{- if .root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/moonshard-tls, readOnly: true}
{{- end }}
{{- if include "moonshard.authItems" . }}
- {name: auth, mountPath: /etc/moonshard-auth, readOnly: true}
{{- end }}
{{- with .pod.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What worker and router containers share. Takes root, pod, own (env). */}}
{{- define "moonshard.containerEnv" -}}
{{- with include "moonshard.env" (dict "own" .own "extra" .pod.extraEnv) }}
env:
  {{- . | nindent 2 }}
{{- end }}
{{- with .pod.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Init containers of a pod that reads the weights. */}}
{{- define "moonshard.initContainers" -}}
{{- $containers := .pod.initContainers -}}
{{- if eq (fromJson (include "moonshard.weights" .root)).scheme "hf" -}}
{{- $containers = prepend $containers (fromYaml (include "moonshard.awaitWeights" .root)) -}}
{{- end -}}
{{- with $containers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
