{{- define "belay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "belay.operator" -}}{{ include "belay.fullname" . }}-operator{{- end -}}
{{- define "belay.gateway" -}}{{ include "belay.fullname" . }}-gateway{{- end -}}

{{/* Labels of everything; call with (list . "operator"). */}}
{{- define "belay.labels" -}}
{{- $root := index . 0 -}}
{{ include "belay.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: belay
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "belay.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: belay-{{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Image of a program; call with (list . "worker" given-name). */}}
{{- define "belay.image" -}}
{{- $root := index . 0 -}}
{{- with index . 2 -}}
{{- . -}}
{{- else -}}
{{- printf "%s/belay-%s:%s" $root.Values.image.registry (index . 1) (default $root.Chart.AppVersion $root.Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "belay.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $account := (index $root.Values $name).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "belay.fullname" $root) $name) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{/* Both levels pass the restricted pod security standard. */}}
{{- define "belay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "belay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
  - ALL
{{- end -}}

{{/* Where pods go; call with (list . "gateway"). */}}
{{- define "belay.scheduling" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
{{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
{{- with $values.tolerations }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- /* Kubernetes' own default is to wait 5 minutes: too long for what looks after lost nodes */}}
{{- range list "not-ready" "unreachable" }}
- key: node.kubernetes.io/{{ . }}
  operator: Exists
  effect: NoExecute
  tolerationSeconds: {{ $root.Values.operator.nodeLostSeconds }}
{{- end }}
affinity:
{{- if $values.affinity }}
{{- toYaml $values.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "belay.selector" . | nindent 12 }}
{{- end }}
{{- end -}}

{{/* Where every rule of the HTTPRoute leads. */}}
{{- define "belay.routeEnd" -}}
backendRefs:
- name: {{ include "belay.gateway" . }}
  port: {{ .Values.gateway.service.port }}
{{- with .Values.gateway.httpRoute.timeouts }}
timeouts:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
