{{- define "birdtap.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "birdtap.selector" -}}
app.kubernetes.io/name: birdtap
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "birdtap.labels" -}}
{{ include "birdtap.labelsOf" (dict "root" . "role" "") }}
{{- end }}

{{- /* The labels of a role, whose version may be another one's. Arguments: root, role. */}}
{{- define "birdtap.labelsOf" -}}
{{ include "birdtap.selector" .root }}
app.kubernetes.io/version: {{ (include "birdtap.imageOf" . | fromYaml).tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- /* The tag and digest of a role: its own if it has one of them, else those of all. Arguments: root, role. */}}
{{- define "birdtap.imageOf" -}}
{{- $own := dig .role "image" dict .root.Values.AsMap }}
{{- $image := ternary .root.Values.image $own (empty (or $own.tag $own.digest)) }}
{{- pick $image "tag" "digest" | toYaml }}
{{- end }}

{{- define "birdtap.image" -}}
{{- $image := include "birdtap.imageOf" . | fromYaml }}
{{- if $image.digest }}{{ .root.Values.image.repository }}@{{ $image.digest }}
{{- else }}{{ .root.Values.image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Go's own limit, 85 % of the container's: "256Mi" becomes 217MiB. */}}
{{- define "birdtap.gomemlimit" -}}
{{- $mebibytes := int (regexFind "^[0-9]+" .) }}
{{- if hasSuffix "Gi" . }}{{ $mebibytes = mul $mebibytes 1024 }}{{ end }}
{{- div (mul $mebibytes 85) 100 }}MiB
{{- end }}

{{- /* What cannot be seen by the schema: one value that needs another. */}}
{{- define "birdtap.check" -}}
{{- $v := .Values }}
{{- if eq $v.mode "cluster" }}
  {{- $_ := required "nats.url: mode cluster needs the NATS cluster; one process with its own queue is mode embedded" $v.nats.url }}
{{- else }}
  {{- if and (include "birdtap.sends" .) (gt (int $v.embedded.replicas) 1) }}
    {{- fail "sender: with more than one of embedded.replicas a webhook call that is made again may reach another pod, which would send it once more; take mode cluster" }}
  {{- end }}
  {{- if gt (mul $v.embedded.replicas $v.clevertap.maxInflight) 15 }}
    {{- fail "embedded.replicas times clevertap.maxInflight is more than the 15 calls that CleverTap takes at once from one account" }}
  {{- end }}
{{- end }}
{{- if include "birdtap.sends" . }}
  {{- $_ := required "sender.appId: the Application ID of Sendbird's dashboard" $v.sender.appId }}
  {{- $_ := required "sender.tokensSecret: a Secret with the key sender-tokens" $v.sender.tokensSecret }}
  {{- $_ := required "sender.notificationsSecret: a Secret with the key notifications-token" $v.sender.notificationsSecret }}
{{- end }}
{{- if and $v.clevertap.region $v.clevertap.url }}{{ fail "clevertap: set region or url, not both" }}{{ end }}
{{- if and $v.ingress.enabled (not $v.ingress.host) }}{{ fail "ingress.host: which name?" }}{{ end }}
{{- end }}

{{- /* Not empty where notifications are sent: one of the sender's secrets is given. */}}
{{- define "birdtap.sends" -}}
{{- if or .Values.sender.tokensSecret .Values.sender.notificationsSecret }}yes{{ end }}
{{- end }}

{{- /* Not empty for the role that sends them. Arguments: root, role. */}}
{{- define "birdtap.isSender" -}}
{{- if or (eq .role "sender") (and (eq .role "serve") (include "birdtap.sends" .root)) }}yes{{ end }}
{{- end }}

{{- /*
A role's environment. Arguments: root, role (ingest, relay, sender, serve, init).
*/}}
{{- define "birdtap.env" -}}
{{- $v := .root.Values }}
{{- $needsAccount := not (has .role (list "sender" "init")) }}
{{- $hasDoors := or (eq .role "ingest") (eq .role "serve") }}
{{- if ne .role "init" }}
- {name: GOMEMLIMIT, value: {{ include "birdtap.gomemlimit" .resources.limits.memory | quote }}}
- {name: BIRDTAP_HTTP_ADDR, value: ":8080"}
- {name: BIRDTAP_OPS_ADDR, value: ":9090"}
- {name: BIRDTAP_OPS_TOKEN_FILE, value: /run/secrets/birdtap/ops-token}
{{- end }}
- {name: BIRDTAP_DATA_DIR, value: /var/lib/birdtap/data}
{{- if $needsAccount }}
- {name: BIRDTAP_CLEVERTAP_ACCOUNT_ID, value: {{ $v.clevertap.accountId | quote }}}
- {name: BIRDTAP_CLEVERTAP_PASSCODE_FILE, value: /run/secrets/birdtap/passcode}
- {name: BIRDTAP_CLEVERTAP_MAX_INFLIGHT, value: {{ $v.clevertap.maxInflight | quote }}}
{{- with $v.clevertap.region }}
- {name: BIRDTAP_CLEVERTAP_REGION, value: {{ . | quote }}}
{{- end }}
{{- with $v.clevertap.url }}
- {name: BIRDTAP_CLEVERTAP_URL, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- if and $hasDoors $v.signing.existingSecret }}
- {name: BIRDTAP_SENDBIRD_SIGNING_KEYS_FILE, value: /run/secrets/birdtap/signing-keys}
{{- end }}
{{- if and (or $hasDoors (eq .role "sender")) $v.tls.existingSecret }}
- {name: BIRDTAP_HTTP_TLS_CERT_FILE, value: /run/secrets/tls/tls.crt}
- {name: BIRDTAP_HTTP_TLS_KEY_FILE, value: /run/secrets/tls/tls.key}
{{- end }}
{{- if include "birdtap.isSender" . }}
- {name: BIRDTAP_SENDBIRD_APP_ID, value: {{ $v.sender.appId | quote }}}
- {name: BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN_FILE, value: /run/secrets/birdtap/notifications-token}
- {name: BIRDTAP_SENDER_TOKENS_FILE, value: /run/secrets/birdtap/sender-tokens}
- {name: BIRDTAP_GATHER_WAIT, value: {{ $v.sender.gatherWait | quote }}}
{{- end }}
{{- if and (include "birdtap.sends" .root) (ne .role "relay") }}
- {name: BIRDTAP_REMEMBER_SENT, value: {{ $v.sender.rememberSent | quote }}}
{{- end }}
{{- if eq $v.mode "cluster" }}
- {name: BIRDTAP_NATS_URL, value: {{ $v.nats.url | quote }}}
- {name: BIRDTAP_REPLICAS, value: {{ $v.nats.replicas | quote }}}
- {name: BIRDTAP_STREAM_PREFIX, value: {{ $v.nats.streamPrefix | quote }}}
{{- if index $v.nats.tls (printf "%sSecret" .user) }}
- {name: BIRDTAP_NATS_CA_FILE, value: /run/secrets/nats/ca.crt}
- {name: BIRDTAP_NATS_CERT_FILE, value: /run/secrets/nats/tls.crt}
- {name: BIRDTAP_NATS_KEY_FILE, value: /run/secrets/nats/tls.key}
{{- end }}
{{- if index $v.nats.creds (printf "%sSecret" .user) }}
- {name: BIRDTAP_NATS_CREDS_FILE, value: /run/secrets/nats-creds/nats.creds}
{{- end }}
{{- end }}
{{- range $name, $value := $v.config }}
- {name: BIRDTAP_{{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "birdtap.mounts" -}}
{{- $v := .root.Values }}
- {name: data, mountPath: /var/lib/birdtap}
{{- if ne .role "init" }}
- {name: tmp, mountPath: /tmp}
{{- if and (eq .role "serve") (include "birdtap.sends" .root) }}
- {name: files, mountPath: /files, readOnly: true}
{{- end }}
- {name: secrets, mountPath: /run/secrets/birdtap, readOnly: true}
{{- end }}
{{- if and $v.tls.existingSecret (has .role (list "ingest" "serve" "sender")) }}
- {name: tls, mountPath: /run/secrets/tls, readOnly: true}
{{- end }}
{{- if eq $v.mode "cluster" }}
{{- if index $v.nats.tls (printf "%sSecret" .user) }}
- {name: nats, mountPath: /run/secrets/nats, readOnly: true}
{{- end }}
{{- if index $v.nats.creds (printf "%sSecret" .user) }}
- {name: nats-creds, mountPath: /run/secrets/nats-creds, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "birdtap.volumes" -}}
{{- $v := .root.Values }}
{{- if ne .role "init" }}
- name: tmp  # for commands that are run in the pod: they sort the users of large files there
  emptyDir: {sizeLimit: 2Gi}
{{- if and (eq .role "serve") (include "birdtap.sends" .root) }}
- name: files  # of users, for birdtap send; made and deleted while the pod runs
  configMap: {name: {{ include "birdtap.name" .root }}-files, optional: true}
{{- end }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ required "ops.existingSecret: a Secret with the key token" $v.ops.existingSecret }}
          items: [{key: token, path: ops-token}]
      {{- if ne .role "sender" }}
      - secret:
          name: {{ required "clevertap.existingSecret: a Secret with the key passcode" $v.clevertap.existingSecret }}
          items: [{key: passcode, path: passcode}]
      {{- end }}
      {{- if and $v.signing.existingSecret (has .role (list "ingest" "serve")) }}
      - secret:
          name: {{ $v.signing.existingSecret }}
          items: [{key: signing-keys, path: signing-keys}]
      {{- end }}
      {{- if include "birdtap.isSender" . }}
      - secret:
          name: {{ $v.sender.tokensSecret }}
          items: [{key: sender-tokens, path: sender-tokens}]
      - secret:
          name: {{ $v.sender.notificationsSecret }}
          items: [{key: notifications-token, path: notifications-token}]
      {{- end }}
{{- end }}
{{- if and $v.tls.existingSecret (has .role (list "ingest" "serve" "sender")) }}
- name: tls
  secret: {secretName: {{ $v.tls.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- if eq $v.mode "cluster" }}
- name: data  # the copy of the identity map; made anew with every pod
  emptyDir: {sizeLimit: 2Gi}
{{- with index $v.nats.tls (printf "%sSecret" .user) }}
- name: nats
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with index $v.nats.creds (printf "%sSecret" .user) }}
- name: nats-creds
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}

{{- /* Who runs a pod, and how little it may do. */}}
{{- define "birdtap.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "birdtap.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities: {drop: [ALL]}
{{- end }}

{{- /*
The pod of a daemon. Arguments: root, role, user (of NATS), resources.
*/}}
{{- define "birdtap.pod" -}}
{{- $v := .root.Values }}
metadata:
  labels:
    {{- include "birdtap.labelsOf" . | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
  {{- with $v.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "birdtap.name" .root }}
  {{- include "birdtap.podSecurity" .root | nindent 2 }}
  # 10 s until no balancer sends anything any more, then SIGTERM, and 15 s for calls in flight.
  terminationGracePeriodSeconds: 45
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  topologySpreadConstraints:
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: {{ $v.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "birdtap.selector" $.root | nindent 10 }}
          app.kubernetes.io/component: {{ $.role }}
    {{- end }}
  {{- with $v.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: birdtap
      image: {{ include "birdtap.image" . }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [{{ .role }}]
      env: {{- include "birdtap.env" . | nindent 8 }}
      ports:
        {{- if ne .role "relay" }}
        - {name: http, containerPort: 8080}
        {{- end }}
        - {name: ops, containerPort: 9090}
      # Waiting for CleverTap, standing by and recovering are no reason to be killed.
      livenessProbe:
        httpGet: {path: /healthz, port: ops}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: ops}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      {{- if ne .role "relay" }}
      lifecycle:
        preStop:
          sleep: {seconds: 10}
      {{- end }}
      resources: {{- toYaml .resources | nindent 8 }}
      securityContext: {{- include "birdtap.containerSecurity" . | nindent 8 }}
      volumeMounts: {{- include "birdtap.mounts" . | nindent 8 }}
  volumes: {{- include "birdtap.volumes" . | nindent 4 }}
{{- end }}
