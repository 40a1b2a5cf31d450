{{/* Weights: {"scheme", "claim", "path" (inside the mount), "reference", "repo", "revision"} as JSON. */}}
{{- define "moonshard.weights" -}}
{{- $scheme := index (splitList "://" .Values.weights.uri) 0 -}}
{{- $rest := .Values.weights.uri | trimPrefix (printf "%s://" $scheme) -}}
{{- $found := dict "scheme" $scheme "claim" "" "path" "" "reference" "" "repo" "" "revision" "" -}}
{{- if eq $scheme "pvc" -}}
  {{- $parts := splitn "/" 2 $rest -}}
  {{- $_ := set $found "claim" $parts._0 -}}
  {{- $_ := set $found "path" ($parts._1 | default "" | trimSuffix "/") -}}
{{- else if eq $scheme "hf" -}}
  {{- $parts := splitn "@" 2 $rest -}}
  {{- $_ := set $found "claim" (.Values.weights.download.existingClaim | default (printf "%s-weights" (include "moonshard.fullname" .))) -}}
  {{- $_ := set $found "repo" $parts._0 -}}
  {{- $_ := set $found "revision" ($parts._1 | default "main") -}}
  {{- $_ := set $found "path" (printf "%s/%s" $parts._0 ($parts._1 | default "main")) -}}
{{- else if eq $scheme "image" -}}
  {{- if not (semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version) -}}
    {{- fail (printf "weights.uri: image volumes need Kubernetes 1.36, this is %s" .Capabilities.KubeVersion.Version) -}}
  {{- end -}}
  {{- $_ := set $found "reference" $rest -}}
{{- else -}}
  {{- $_ := set $found "path" $rest -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Where a container sees the checkpoint. */}}
{{- define "moonshard.checkpoint" -}}
{{- $weights := fromJson (include "moonshard.weights" .) -}}
{{- if or (eq $weights.scheme "hostpath") (eq $weights.scheme "image") (not $weights.path) -}}
/weights
{{- else -}}
{{ printf "/weights/%s" $weights.path }}
{{- end -}}
{{- end -}}

{{- define "moonshard.weightsVolume" -}}
{{- $weights := fromJson (include "moonshard.weights" .) -}}
name: weights
{{- if eq $weights.scheme "hostpath" }}
hostPath:
  path: {{ $weights.path }}
  type: Directory
{{- else if eq $weights.scheme "image" }}
image:
  reference: {{ $weights.reference }}
  pullPolicy: IfNotPresent
{{- else }}
persistentVolumeClaim:
  claimName: {{ $weights.claim }}
{{- end }}
{{- end -}}

{{/* The init container that waits for the download Job's mark. */}}
{{- define "moonshard.awaitWeights" -}}
name: await-weights
image: {{ include "moonshard.image" (dict "root" . "image" .Values.routerImage) }}
imagePullPolicy: {{ .Values.routerImage.pullPolicy }}
command: [python, -c]
args:
  - |
    import pathlib, sys, time
    mark, limit_s = pathlib.Path(sys.argv[1]), 60 * float(sys.argv[2])
    started = time.monotonic()
    while not mark.exists():
        if time.monotonic() - started > limit_s:
            sys.exit(f"{mark} did not appear within {limit_s:g} s")
        time.sleep(5)
  - {{ include "moonshard.checkpoint" . }}/.moonshard-complete
  - {{ .Values.weights.download.waitMinutes | quote }}
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 128Mi}
securityContext:
  {{- include "moonshard.containerSecurity" (dict "root" . "worker" false) | nindent 2 }}
volumeMounts:
  - {name: weights, mountPath: /weights, readOnly: true}
{{- end -}}
