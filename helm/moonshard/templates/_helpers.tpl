{{- define "moonshard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for the longest suffix that a component adds: names of pods become host names. */}}
{{- define "moonshard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "moonshard.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "moonshard.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Never a version here: selectors of StatefulSets and Deployments cannot change. Takes (dict "root" $ "component" "x"). */}}
{{- define "moonshard.selector" -}}
app.kubernetes.io/name: {{ include "moonshard.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "moonshard.labels" -}}
{{ include "moonshard.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: moonshard
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of any object. Takes root, component, and optionally suffix (of the name), labels, annotations. */}}
{{- define "moonshard.metadata" -}}
name: {{ include "moonshard.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "moonshard.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Takes root and image (a section of the values). */}}
{{- define "moonshard.image" -}}
{{- $name := .image.repository -}}
{{- with .image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "moonshard.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "moonshard.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The control Service also answers for a router that is not ready: workers must reach it to make it ready. */}}
{{- define "moonshard.controlHost" -}}
{{- printf "%s-control.%s.svc" (include "moonshard.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "moonshard.routerHost" -}}
{{- printf "%s-router.%s.svc" (include "moonshard.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "moonshard.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "moonshard.fullname" .)) -}}
{{- end -}}

{{- define "moonshard.transport" -}}
{{- .Values.config.transport | default "links" -}}
{{- end -}}

{{/* How many attention workers a cell may have: an autoscaler's largest number. */}}
{{- define "moonshard.numAttention" -}}
{{- if .Values.attention.autoscaling.enabled -}}
{{- .Values.attention.autoscaling.maxReplicas -}}
{{- else -}}
{{- .Values.attention.replicas -}}
{{- end -}}
{{- end -}}
