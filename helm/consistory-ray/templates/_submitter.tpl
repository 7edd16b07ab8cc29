{{/* Pod template of the submitter: (dict "root" $ "containers" yaml-of-extra-container-fields) */}}
{{- define "consistory-ray.submitterPod" -}}
metadata:
  {{- include "consistory-ray.podMetadata" (dict "root" .root "component" "submitter") | nindent 2 }}
spec:
  {{- include "consistory-ray.podSettings" (dict "root" .root "placement" (pick .root.Values.head "nodeSelector" "tolerations" "affinity" "priorityClassName")) | nindent 2 }}
  automountServiceAccountToken: false
  restartPolicy: Never
  containers:
    - name: submitter
      image: {{ include "consistory-ray.headImage" .root | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      {{- with .container }}
      {{- . | nindent 6 }}
      {{- end }}
      env:
        {{- include "consistory-ray.env" (dict "root" .root "role" "submitter") | nindent 8 }}
        {{- with .env }}
        {{- . | nindent 8 }}
        {{- end }}
      volumeMounts:
        {{- include "consistory-ray.volumeMounts" (dict "root" .root "role" "submitter") | nindent 8 }}
        {{- with .volumeMounts }}
        {{- . | nindent 8 }}
        {{- end }}
      securityContext:
        {{- toYaml .root.Values.securityContext | nindent 8 }}
      resources:
        {{- toYaml .root.Values.submitter.resources | nindent 8 }}
  volumes:
    {{- include "consistory-ray.volumes" (dict "root" .root "role" "submitter") | nindent 4 }}
    {{- with .volumes }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Spec of the Job that submits in mode `cluster`: (dict "root" $ "hash" "…"). In mode `job` KubeRay makes one. */}}
{{- define "consistory-ray.submitterJobSpec" -}}
{{- $v := .root.Values -}}
{{- $cluster := include "consistory-ray.fullname" .root -}}
backoffLimit: {{ int $v.submitter.backoffLimit }}
ttlSecondsAfterFinished: {{ int $v.run.ttlSecondsAfterFinished }}
{{- with $v.run.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ int . }}
{{- end }}
template:
  {{- include "consistory-ray.submitterPod" (dict "root" .root
        "container" (include "consistory-ray.submitterContainer" .root)
        "env" (include "consistory-ray.submitterEnv" (dict "root" .root "cluster" $cluster "hash" .hash))
        "volumeMounts" "- {name: submit, mountPath: /etc/consistory/submit, readOnly: true}"
        "volumes" (printf "- {name: submit, configMap: {name: %s-submit-%s}}" $cluster .hash)) | nindent 2 }}
{{- end }}

{{- define "consistory-ray.submitterContainer" -}}
command: [python, /etc/consistory/submit/submit.py]
args: [{{ include "consistory-ray.command" . | quote }}]
{{- end }}

{{- define "consistory-ray.submitterEnv" -}}
{{- $v := .root.Values -}}
- {name: RAY_API_SERVER_ADDRESS, value: "http://{{ .cluster }}-head-svc:8265"}
- {name: SUBMISSION_ID, value: {{ printf "%s-%s" .cluster .hash | quote }}}
- {name: ATTEMPTS, value: {{ add1 (int $v.run.backoffLimit) | quote }}}
{{- if not $v.job.url }}
- {name: JOB_FILE, value: /etc/consistory/job/job.yaml}
{{- end }}
{{- if eq $v.ray.auth.mode "token" }}
- {name: RAY_AUTH_MODE, value: token}
- {name: RAY_AUTH_TOKEN, valueFrom: {secretKeyRef: {name: {{ default .cluster $v.ray.auth.existingSecret | quote }}, key: auth_token}}}
{{- else }}
- {name: RAY_AUTH_MODE, value: disabled}
{{- end }}
{{- end }}
