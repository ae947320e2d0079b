{{- define "claw.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "claw.labels" -}}
app.kubernetes.io/name: claw-r1
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- /* A headless Service, by which whoever watches finds each pod of a part, ready or not: part, port, suffix. */}}
{{- define "claw.everyPod" -}}
apiVersion: v1
kind: Service
metadata: {name: {{ include "claw.name" .part.root }}-{{ .part.part }}{{ .suffix }}, labels: {{ include "claw.labels" .part | fromYaml | toJson }}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{ include "claw.labels" .part | fromYaml | toJson }}
  ports: [{name: http, port: {{ .port }}, targetPort: http}]
{{- end }}

{{- define "claw.image" -}}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{- end }}

{{- /* Settings that every process reads: root, part. */}}
{{- define "claw.env" -}}
{{- $v := .root.Values }}
- {name: CLAW_KAFKA, value: {{ required "kafka.servers: host:port of the brokers" $v.kafka.servers | quote }}}
- {name: CLAW_KAFKA_PROTOCOL, value: {{ $v.kafka.protocol | quote }}}
{{- if hasPrefix "SASL" $v.kafka.protocol }}
- {name: CLAW_KAFKA_MECHANISM, value: {{ $v.kafka.mechanism | quote }}}
- {name: CLAW_KAFKA_USER, value: {{ printf "%s%s" $v.kafka.users.prefix .user | quote }}}
- name: CLAW_KAFKA_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ printf "%s%s" $v.kafka.users.prefix .user | quote }}, key: {{ $v.kafka.users.passwordKey | quote }}}}
{{- end }}
{{- if $v.kafka.users.certificates }}
- {name: CLAW_KAFKA_CERT, value: /etc/claw/kafka-user/user.crt}
- {name: CLAW_KAFKA_KEY, value: /etc/claw/kafka-user/user.key}
{{- end }}
{{- if $v.kafka.ca.name }}
- {name: CLAW_KAFKA_CA, value: /etc/claw/kafka/ca.crt}
{{- end }}
- name: CLAW_CLICKHOUSE
  valueFrom: {secretKeyRef: {name: {{ required "clickhouse.url.name: the Secret with the pool's URL" $v.clickhouse.url.name | quote }}, key: {{ $v.clickhouse.url.key | quote }}}}
{{- if $v.clickhouse.ca.name }}
- {name: CLAW_CLICKHOUSE_CA, value: /etc/claw/clickhouse/ca.crt}
{{- end }}
- {name: CLAW_DATABASE, value: {{ $v.clickhouse.database | quote }}}
- name: CLAW_SECRET
  valueFrom: {secretKeyRef: {name: {{ required "secret.name: the Secret that signs keys" $v.secret.name | quote }}, key: {{ $v.secret.key | quote }}}}
- {name: CLAW_BLOBS, value: /data/blobs}
{{- end }}

{{- define "claw.moreEnv" -}}
{{- range $name, $value := . }}
- {name: {{ $name | quote }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- define "claw.certificates.mounts" -}}
{{- if .Values.kafka.ca.name }}
- {name: kafka-ca, mountPath: /etc/claw/kafka, readOnly: true}
{{- end }}
{{- if .Values.kafka.users.certificates }}
- {name: kafka-user, mountPath: /etc/claw/kafka-user, readOnly: true}
{{- end }}
{{- if .Values.clickhouse.ca.name }}
- {name: clickhouse-ca, mountPath: /etc/claw/clickhouse, readOnly: true}
{{- end }}
{{- end }}

{{- /* root, user. */}}
{{- define "claw.certificates.volumes" -}}
{{- with .root.Values.kafka.ca }}{{ if .name }}
- name: kafka-ca
  secret: {secretName: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- if .root.Values.kafka.users.certificates }}
- name: kafka-user
  secret: {secretName: {{ printf "%s%s" .root.Values.kafka.users.prefix .user | quote }}, items: [{key: user.crt, path: user.crt}, {key: user.key, path: user.key}]}
{{- end }}
{{- with .root.Values.clickhouse.ca }}{{ if .name }}
- name: clickhouse-ca
  secret: {secretName: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- end }}

{{- /* root, user. */}}
{{- define "claw.volumes" -}}
- {name: tmp, emptyDir: {}}
{{- if .root.Values.blobs.existingClaim }}
- {name: blobs, persistentVolumeClaim: {claimName: {{ .root.Values.blobs.existingClaim | quote }}}}
{{- else }}
- {name: blobs, emptyDir: {}}
{{- end }}
{{- include "claw.certificates.volumes" . }}
{{- end }}

{{- define "claw.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: blobs, mountPath: /data/blobs}
{{- include "claw.certificates.mounts" . }}
{{- end }}

{{- define "claw.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "claw.pod.security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "claw.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "claw.probes" -}}
startupProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 2, failureThreshold: 60}
livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 5, timeoutSeconds: 5}
{{- end }}

{{- /* Copies of a part on different nodes, as far as there are some. */}}
{{- define "claw.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector: {matchLabels: {{ include "claw.labels" . | fromYaml | toJson }}}
{{- end }}
