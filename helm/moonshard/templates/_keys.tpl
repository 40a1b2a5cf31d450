{{/*
Unknown keys are refused here and not by values.schema.json, which knows of no nearest key. keys.json is the tree of what
is known: an object is a level, true takes anything, false is set by the chart alone.
*/}}
{{- define "moonshard.checkKeys" -}}
{{- include "moonshard.checkLevel" (dict "path" "" "known" (.Files.Get "keys.json" | fromJson) "given" .Values) -}}
{{- end -}}

{{/* Takes path (of the level, with its dot), known, given. */}}
{{- define "moonshard.checkLevel" -}}
{{- range $key, $value := .given -}}
  {{- $path := printf "%s%s" $.path $key -}}
  {{- if not (hasKey $.known $key) -}}
    {{- include "moonshard.refuse" (printf "%s: unknown key; did you mean '%s'?" $path (include "moonshard.nearest" (dict "word" $key "among" (keys $.known | sortAlpha)))) -}}
  {{- end -}}
  {{- $below := index $.known $key -}}
  {{- if kindIs "map" $below -}}
    {{- if kindIs "map" $value -}}
      {{- include "moonshard.checkLevel" (dict "path" (printf "%s." $path) "known" $below "given" $value) -}}
    {{- end -}}
  {{- else if not $below -}}
    {{- include "moonshard.refuse" (printf "%s: the chart sets it itself, from its own values" $path) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Of the words `among`, the one that shares most pairs of neighbouring letters with `word`; case and _ do not count. */}}
{{- define "moonshard.nearest" -}}
{{- $word := include "moonshard.bare" .word -}}
{{- $best := dict "score" -1 "word" "" -}}
{{- range $candidate := .among -}}
  {{- $bare := include "moonshard.bare" $candidate -}}
  {{- $shared := 0 -}}
  {{- range $i := until (int (sub (len $word) 1)) -}}
    {{- if contains (substr $i (int (add $i 2)) $word) $bare -}}{{- $shared = add $shared 1 -}}{{- end -}}
  {{- end -}}
  {{- $score := div (mul 1000 $shared) (add (len $word) (len $bare)) -}}
  {{- if gt (int $score) (int $best.score) -}}
    {{- $_ := set $best "score" (int $score) -}}
    {{- $_ := set $best "word" $candidate -}}
  {{- end -}}
{{- end -}}
{{- $best.word -}}
{{- end -}}

{{/* With a mark at both ends, so that first and last letters count as pairs of their own. */}}
{{- define "moonshard.bare" -}}
{{- printf "^%s$" (lower . | replace "_" "" | replace "-" "") -}}
{{- end -}}

{{/* Ends rendering with a message. `helm lint` only notes a `fail` and goes on: it meets a template that is not there. */}}
{{- define "moonshard.refuse" -}}
{{- fail . -}}
{{- include . "refused" -}}
{{- end -}}
