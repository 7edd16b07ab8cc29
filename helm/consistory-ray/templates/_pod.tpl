{{/* Parts that head, workers and submitter share. */}}

{{/* Environment: (dict "root" $ "role" "head|worker|submitter" "gpus" 1) */}}
{{- define "consistory-ray.env" -}}
{{- $v := .root.Values -}}
- {name: PYTHONUNBUFFERED, value: "1"}
# The root file system is read-only; everything that is written goes to the scratch volume.
- {name: HOME, value: /tmp}
- {name: XDG_CACHE_HOME, value: /tmp/.cache}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- if ne .role "submitter" }}
# Ray would start workers at nice 15: beside anything else on the node they would get next to nothing.
- {name: RAY_worker_niceness, value: "0"}
{{- if and (eq .role "head") $v.monitoring.port }}
# The coordinator is started on the head and inherits this.
- {name: CONSISTORY_METRICS_HOST, value: 0.0.0.0}
- {name: CONSISTORY_METRICS_PORT, value: {{ int $v.monitoring.port | quote }}}
{{- end }}
{{- if eq .role "head" }}
# How long Ray waits between SIGTERM and SIGKILL when it stops a run.
- {name: RAY_JOB_STOP_WAIT_TIME_S, value: {{ include "consistory-ray.stopSeconds" .root | quote }}}
# The preStop hook has waited; without this a stopping head would wait another 30 s for work that it never gets.
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "0"}
{{- if ne $v.monitoring.pricePerGpuHour nil }}
- {name: CONSISTORY_PRICE_PER_GPU_HOUR, value: {{ toString $v.monitoring.pricePerGpuHour | quote }}}
{{- end }}
{{- with $v.run.allowedUrls }}
- {name: CONSISTORY_ALLOWED_URLS, value: {{ join "," . | quote }}}
{{- end }}
{{- if ne $v.run.logFormat "text" }}
- {name: CONSISTORY_LOG_FORMAT, value: {{ $v.run.logFormat }}}
{{- end }}
{{- with $v.run.logLevel }}
- {name: CONSISTORY_LOG_LEVEL, value: {{ . }}}
{{- end }}
{{- end }}
{{- if not .gpus }}
# Where nvidia is the default runtime, a pod without GPUs would otherwise see all of its node's.
- {name: NVIDIA_VISIBLE_DEVICES, value: void}
{{- end }}
{{- if or (eq $v.model.cache.type "persistentVolume") (and (eq .role "worker") (ne $v.model.cache.type "none")) }}
- {name: HF_HOME, value: /models}
{{- end }}
{{- if $v.model.prefetch.repository }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
{{- with $v.storage.s3.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- with $v.storage.s3.endpointUrl }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
{{- with $v.storage.s3.credentialsSecret }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: AWS_ACCESS_KEY_ID}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: AWS_SECRET_ACCESS_KEY}}}
- {name: AWS_SESSION_TOKEN, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: AWS_SESSION_TOKEN, optional: true}}}
{{- end }}
{{- if $v.storage.gcs.credentialsSecret.name }}
- {name: GOOGLE_APPLICATION_CREDENTIALS, value: /etc/consistory/gcs/key.json}
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "consistory-ray.volumeMounts" -}}
{{- $v := .root.Values -}}
- {name: scratch, mountPath: /tmp}
{{- if eq .role (include "consistory-ray.jobMountedBy" .root) }}
- {name: job, mountPath: /etc/consistory/job, readOnly: true}
{{- end }}
{{- if ne .role "submitter" }}
- {name: shm, mountPath: /dev/shm}
{{- if $v.output.persistentVolume.enabled }}
- {name: output, mountPath: {{ $v.output.persistentVolume.mountPath | quote }}}
{{- end }}
{{- if or (and (eq .role "worker") (ne $v.model.cache.type "none")) (eq $v.model.cache.type "persistentVolume") }}
- {name: models, mountPath: /models{{ if eq .role "head" }}, readOnly: true{{ end }}}
{{- end }}
{{- if $v.storage.gcs.credentialsSecret.name }}
- {name: gcs-key, mountPath: /etc/consistory/gcs, readOnly: true}
{{- end }}
{{- with $v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Volumes: (dict "root" $ "role" … "objectStore" "16Gi") */}}
{{- define "consistory-ray.volumes" -}}
{{- $v := .root.Values -}}
- name: scratch
  emptyDir: {sizeLimit: {{ ternary "1Gi" $v.scratch.sizeLimit (eq .role "submitter") }}}
{{- if eq .role (include "consistory-ray.jobMountedBy" .root) }}
- name: job
  configMap:
    name: {{ include "consistory-ray.jobConfigMapName" .root | quote }}
    items: [{key: {{ ternary $v.job.existingConfigMap.key "job.yaml" (ne $v.job.existingConfigMap.name "") | quote }}, path: {{ include "consistory-ray.jobFile" .root }}}]
{{- end }}
{{- if ne .role "submitter" }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ include "consistory-ray.shmMebibytes" .objectStore }}Mi}
{{- if $v.output.persistentVolume.enabled }}
- name: output
  persistentVolumeClaim: {claimName: {{ include "consistory-ray.outputClaimName" .root | quote }}}
{{- end }}
{{- if eq $v.model.cache.type "persistentVolume" }}
- name: models
  persistentVolumeClaim: {claimName: {{ include "consistory-ray.modelClaimName" .root | quote }}{{ if eq .role "head" }}, readOnly: true{{ end }}}
{{- else if and (eq .role "worker") (eq $v.model.cache.type "hostPath") }}
- name: models
  hostPath: {path: {{ $v.model.cache.hostPath | quote }}, type: Directory}
{{- else if and (eq .role "worker") (eq $v.model.cache.type "emptyDir") }}
- name: models
  emptyDir: {sizeLimit: {{ $v.model.cache.sizeLimit }}}
{{- end }}
{{- if and (eq .role "head") $v.ray.autoscaling.enabled }}
# What Kubernetes would mount into every container of the pod; here the autoscaler alone mounts it.
- name: kube-api-access
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
{{- if $v.storage.gcs.credentialsSecret.name }}
- name: gcs-key
  secret:
    secretName: {{ $v.storage.gcs.credentialsSecret.name | quote }}
    items: [{key: {{ $v.storage.gcs.credentialsSecret.key | quote }}, path: key.json}]
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where and as whom a pod runs: (dict "root" $ "placement" {nodeSelector, tolerations, affinity, …}) */}}
{{- define "consistory-ray.podSettings" -}}
serviceAccountName: {{ include "consistory-ray.serviceAccountName" .root | quote }}
# Service links would turn a Service named "consistory" into environment variables of this program's prefix.
enableServiceLinks: false
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" }}
{{- with get $.placement $key }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with get $.placement $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Init container that downloads the model, so that workers start with it, offline and without the token. */}}
{{- define "consistory-ray.prefetch" -}}
{{- $p := .Values.model.prefetch -}}
- name: prefetch-model
  image: {{ include "consistory-ray.workerImage" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/bin/bash, -euo, pipefail, -c]
  args:
    - |
      {{- .Files.Get "files/prefetch.sh" | trim | nindent 6 }}
  env:
    - {name: HOME, value: /tmp}
    - {name: HF_HOME, value: /models}
    - {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
    - {name: HF_HUB_OFFLINE, value: "0"} # an image with a model inside says 1
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    - {name: MODEL, value: {{ $p.repository | quote }}}
    - {name: REVISION, value: {{ $p.revision | quote }}}
    - {name: INCLUDE, value: {{ join " " $p.include | quote }}}
    - {name: EXCLUDE, value: {{ join " " $p.exclude | quote }}}
    {{- if $p.tokenSecret.name }}
    - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ $p.tokenSecret.name | quote }}, key: {{ $p.tokenSecret.key | quote }}}}}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - {name: scratch, mountPath: /tmp}
    - {name: models, mountPath: /models}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  resources:
    {{- toYaml $p.resources | nindent 4 }}
{{- end }}
