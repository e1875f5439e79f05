{{- define "foveate.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "foveate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "foveate.labels" -}}
{{ include "foveate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "foveate.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- /* Of both Services: without TLS HTTP/2 in the clear, which a proxy must be told. */ -}}
{{- define "foveate.ports" -}}
- name: grpc
  port: 50051
  targetPort: grpc
  appProtocol: {{ if .Values.tls.secret }}https{{ else }}kubernetes.io/h2c{{ end }}
{{- if .Values.http }}
- name: http
  port: 8080
  targetPort: http
  appProtocol: {{ if .Values.tls.secret }}https{{ else }}http{{ end }}
{{- end }}
{{- end -}}

{{- /* The settings of the server as environment variables, in the order of their names. */ -}}
{{- define "foveate.environment" -}}
{{- $settings := merge (dict
      "address" "0.0.0.0:50051"
      "metrics_address" "0.0.0.0:9090"
      "repository" "/models") .Values.settings -}}
{{- if .Values.http -}}
{{- $_ := set $settings "http_address" "0.0.0.0:8080" -}}
{{- end -}}
{{- if .Values.tls.secret -}}
{{- $_ := set $settings "tls_certificate" "/run/secrets/tls/tls.crt" -}}
{{- $_ := set $settings "tls_key" "/run/secrets/tls/tls.key" -}}
{{- if .Values.tls.mutual -}}
{{- $_ := set $settings "tls_client_ca" "/run/secrets/tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.tokens.secret -}}
{{- $_ := set $settings "tokens" "/run/secrets/tokens/tokens.toml" -}}
{{- end -}}
{{- /* As JSON, because a large number would otherwise be written with an exponent. */ -}}
{{- range $name, $value := $settings }}
- name: FOVEATE_SERVE_{{ upper $name }}
  value: {{ if kindIs "string" $value }}{{ quote $value }}{{ else }}{{ toJson $value | quote }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "foveate.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The sum over pods of each one's mean wait, which KEDA divides by the number of pods. Without
pictures it is 0 and not NaN. */ -}}
{{- define "foveate.queueQuery" -}}
{{- $of := printf "{namespace=%q,pod=~\"%s-.*\"}[2m]" .Release.Namespace (include "foveate.name" .) -}}
sum(sum by (pod) (rate(foveate_queue_seconds_sum{{ $of }})) / clamp_min(sum by (pod) (rate(foveate_queue_seconds_count{{ $of }})), 0.001))
{{- end -}}
