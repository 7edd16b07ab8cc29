{{/* Pod template of the submitter: (dict "root" $ "container" yaml-of-extra-container-fields "grace" seconds …) */}}
{{- define "consistory-ray.submitterPod" -}}
metadata:
  {{- include "consistory-ray.podMetadata" (dict "root" .root "component" "submitter") | nindent 2 }}
spec:
  {{- include "consistory-ray.podSettings" (dict "root" .root "placement" (pick .root.Values.head "nodeSelector" "tolerations" "affinity" "priorityClassName")) | nindent 2 }}
  automountServiceAccountToken: false
  {{- with .grace }}
  terminationGracePeriodSeconds: {{ . }}
  {{- end }}
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
podFailurePolicy:
  rules:
    # How the run ended, or that somebody stopped it: another pod would report the same. What is left is trouble on the way.
    - action: FailJob
      onExitCodes: {containerName: submitter, operator: In, values: [1, 2, 3, 75, 76, 130]}
      onPodConditions: [] # Kubernetes 1.27 lists it as required
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
ttlSecondsAfterFinished: {{ int $v.run.ttlSecondsAfterFinished }}
{{- with $v.run.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ int . }}
{{- end }}
template:
  {{- include "consistory-ray.submitterPod" (dict "root" .root
        "container" (include "consistory-ray.submitterContainer" .root)
        "grace" (add (include "consistory-ray.stopSeconds" .root) 30)
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
- {name: RELEASE, value: {{ .cluster | quote }}}
- {name: SUBMISSION_ID, value: {{ printf "%s-%s" .cluster .hash | quote }}}
- {name: ATTEMPTS, value: {{ add1 (int $v.run.backoffLimit) | quote }}}
- {name: STOP_SECONDS, value: {{ add (include "consistory-ray.stopSeconds" .root) 10 | quote }}}
{{- if not $v.job.url }}
- {name: JOB_FILE, value: /etc/consistory/job/{{ include "consistory-ray.jobFile" .root }}}
{{- end }}
{{- if eq $v.ray.auth.mode "token" }}
- {name: RAY_AUTH_MODE, value: token}
- {name: RAY_AUTH_TOKEN, valueFrom: {secretKeyRef: {name: {{ default .cluster $v.ray.auth.existingSecret | quote }}, key: auth_token}}}
{{- else }}
- {name: RAY_AUTH_MODE, value: disabled}
{{- end }}
{{- end }}
