{{/* The cluster's name. Cut silently it would be another one's, so a long one is refused. */}}
{{- define "cairn-cluster.name" -}}
{{- $name := .Values.name | default .Release.Name -}}
{{- if gt (len $name) 42 -}}
{{- fail (printf "name %q has %d characters, an EtcdCluster's has at most 42: set a shorter `name`" $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "name %q: an EtcdCluster's name starts with a letter and holds only a-z, 0-9 and '-': set another `name`" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* The chart's own labels win over the user's. */}}
{{- define "cairn-cluster.labels" -}}
{{- $chart := printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $own := dict
  "helm.sh/chart" $chart
  "app.kubernetes.io/name" .Chart.Name
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "cairn" -}}
{{- toYaml (merge $own .Values.labels) -}}
{{- end -}}

{{- define "cairn-cluster.testImage" -}}
{{- $image := .Values.test.image -}}
{{- $repository := $image.repository -}}
{{- if $image.registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $image.registry) $repository -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
