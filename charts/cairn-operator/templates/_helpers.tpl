{{/* Name of the objects. Short enough that what is put behind it stays a label of DNS. */}}
{{- define "cairn-operator.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if not (contains $name .Release.Name) -}}
{{- $name = printf "%s-%s" .Release.Name $name -}}
{{- else -}}
{{- $name = .Release.Name -}}
{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What is cluster-wide has the namespace in its name, so that it is this release's alone. */}}
{{- define "cairn-operator.clusterwide" -}}
{{- printf "%s:%s" .Release.Namespace (include "cairn-operator.fullname" .) -}}
{{- end -}}

{{- define "cairn-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "cairn-operator.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name: name the account, as serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "cairn-operator.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* The chart's own labels win over the user's. */}}
{{- define "cairn-operator.labels" -}}
{{- $chart := printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $own := dict
  "helm.sh/chart" $chart
  "app.kubernetes.io/name" (.Values.nameOverride | default .Chart.Name)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "cairn" -}}
{{- toYaml (merge $own .Values.commonLabels) -}}
{{- end -}}

{{- define "cairn-operator.podLabels" -}}
{{- $own := merge (include "cairn-operator.selector" . | fromYaml) (include "cairn-operator.labels" . | fromYaml) -}}
{{- toYaml (merge $own .Values.podLabels) -}}
{{- end -}}

{{/* Registry and repository of an image. */}}
{{- define "cairn-operator.repository" -}}
{{- if .registry -}}
{{- printf "%s/%s" (trimSuffix "/" .registry) .repository -}}
{{- else -}}
{{- .repository -}}
{{- end -}}
{{- end -}}

{{- define "cairn-operator.image" -}}
{{- $repository := include "cairn-operator.repository" .Values.image -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The pod is a restricted one in the sense of Kubernetes' pod security standards; no value loosens it. */}}
{{- define "cairn-operator.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.runAsGroup }}
runAsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cairn-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* An EtcdCluster's name has at most 42 characters and starts with a letter. */}}
{{- define "cairn-operator.testCluster" -}}
{{- $name := include "cairn-operator.fullname" . | trunc 34 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]" $name) }}{{ $name = printf "t-%s" $name }}{{ end -}}
{{- printf "%s-test" $name -}}
{{- end -}}
