{{/* Spec of the Ray cluster, for RayJob and RayCluster alike. */}}
{{- define "consistory-ray.clusterSpec" -}}
{{- $v := .Values -}}
rayVersion: {{ $v.ray.version | quote }}
{{- if eq $v.ray.auth.mode "token" }}
authOptions:
  mode: token
  {{- with $v.ray.auth.existingSecret }}
  secretName: {{ . | quote }}
  {{- end }}
{{- else }}
authOptions:
  mode: disabled
{{- end }}
{{- if $v.ray.tls.enabled }}
tlsOptions:
  enabled: true
{{- end }}
enableInTreeAutoscaling: {{ $v.ray.autoscaling.enabled }}
{{- if $v.ray.autoscaling.enabled }}
autoscalerOptions:
  version: v2
  upscalingMode: {{ $v.ray.autoscaling.upscalingMode }}
  idleTimeoutSeconds: {{ int $v.ray.autoscaling.idleTimeoutSeconds }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  env:
    - {name: HOME, value: /tmp}
  volumeMounts:
    - {name: scratch, mountPath: /tmp}
    - {name: kube-api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  securityContext:
    {{- toYaml $v.securityContext | nindent 4 }}
  resources:
    {{- toYaml $v.ray.autoscaling.resources | nindent 4 }}
{{- end }}
headGroupSpec:
  rayStartParams:
    # No CPUs: nothing but the coordinator runs on the head.
    num-cpus: "0"
    num-gpus: "0"
    dashboard-host: 0.0.0.0
    object-store-memory: {{ include "consistory-ray.objectStoreBytes" $v.head.objectStoreMemory | quote }}
  template:
    metadata:
      {{- include "consistory-ray.podMetadata" (dict "root" . "component" "head" "annotations" $v.head.podAnnotations) | nindent 6 }}
    spec:
      {{- include "consistory-ray.podSettings" (dict "root" . "placement" $v.head) | nindent 6 }}
      # The autoscaler beside the head talks to the Kubernetes API, and has a mount of its own for that; nothing else does.
      automountServiceAccountToken: false
      # Time for the preStop hook, and for Ray to stop after it.
      terminationGracePeriodSeconds: {{ add (include "consistory-ray.stopSeconds" .) 30 }}
      containers:
        - name: ray-head
          image: {{ include "consistory-ray.headImage" . | quote }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: metrics, containerPort: 8080}
            - {name: as-metrics, containerPort: 44217}
            - {name: dash-metrics, containerPort: 44227}
            {{- if $v.monitoring.port }}
            - {name: run-metrics, containerPort: {{ int $v.monitoring.port }}}
            {{- end }}
          env:
            {{- include "consistory-ray.env" (dict "root" . "role" "head") | nindent 12 }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            {{- include "consistory-ray.volumeMounts" (dict "root" . "role" "head") | nindent 12 }}
          securityContext:
            {{- toYaml $v.securityContext | nindent 12 }}
          resources:
            {{- toYaml $v.head.resources | nindent 12 }}
          lifecycle:
            preStop:
              exec:
                command:
                  - /bin/bash
                  - -c
                  - |
                    {{- .Files.Get "files/stop-run.sh" | trim | nindent 20 }}
                  - stop-run
                  - {{ include "consistory-ray.stopSeconds" . | quote }}
      volumes:
        {{- include "consistory-ray.volumes" (dict "root" . "role" "head" "objectStore" $v.head.objectStoreMemory) | nindent 8 }}
workerGroupSpecs:
  {{- range $group := include "consistory-ray.groups" . | fromJsonArray }}
  - groupName: {{ $group.name }}
    replicas: {{ int $group.replicas }}
    minReplicas: {{ int $group.minReplicas }}
    maxReplicas: {{ int $group.maxReplicas }}
    {{- if $v.ray.autoscaling.enabled }}
    idleTimeoutSeconds: {{ int $group.idleTimeoutSeconds }}
    priority: {{ int $group.priority }}
    {{- end }}
    {{- with $group.labels }}
    labels:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    rayStartParams:
      object-store-memory: {{ include "consistory-ray.objectStoreBytes" $group.store | quote }}
    template:
      metadata:
        {{- include "consistory-ray.podMetadata" (dict "root" $ "component" "worker" "annotations" $group.podAnnotations) | nindent 8 }}
      spec:
        {{- include "consistory-ray.podSettings" (dict "root" $ "placement" $group) | nindent 8 }}
        automountServiceAccountToken: false
        # Time for the preStop hook, and for Ray to stop after it.
        terminationGracePeriodSeconds: {{ add (int $group.drainSeconds) 30 }}
        {{- if $v.model.prefetch.repository }}
        initContainers:
          {{- include "consistory-ray.prefetch" $ | nindent 10 }}
        {{- end }}
        containers:
          - name: ray-worker
            image: {{ include "consistory-ray.workerImage" $ | quote }}
            imagePullPolicy: {{ $v.image.pullPolicy }}
            ports:
              - {name: metrics, containerPort: 8080}
            env:
              {{- include "consistory-ray.env" (dict "root" $ "role" "worker" "gpus" (int $group.gpus)) | nindent 14 }}
            {{- with $v.extraEnvFrom }}
            envFrom:
              {{- toYaml . | nindent 14 }}
            {{- end }}
            volumeMounts:
              {{- include "consistory-ray.volumeMounts" (dict "root" $ "role" "worker") | nindent 14 }}
            securityContext:
              {{- toYaml $v.securityContext | nindent 14 }}
            resources:
              {{- $resources := deepCopy $group.resources }}
              {{- if gt (int $group.gpus) 0 }}
              {{- $_ := set $resources "limits" (merge (dict $group.gpuResourceName (int $group.gpus | toString)) (default (dict) $resources.limits)) }}
              {{- $_ := set $resources "requests" (merge (dict $group.gpuResourceName (int $group.gpus | toString)) (default (dict) $resources.requests)) }}
              {{- end }}
              {{- toYaml $resources | nindent 14 }}
            lifecycle:
              preStop:
                exec:
                  # Tells Ray, and through it the coordinator, that this node is going, and meanwhile leaves the batch in
                  # hand its time, however long the telling takes. Ray ends the container as soon as the node is idle.
                  command:
                    - /bin/bash
                    - -c
                    - >-
                      ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "pod is stopping"
                      --deadline-remaining-seconds {{ int $group.drainSeconds }} & sleep {{ int $group.drainSeconds }}
        volumes:
          {{- include "consistory-ray.volumes" (dict "root" $ "role" "worker" "objectStore" $group.store) | nindent 10 }}
  {{- end }}
{{- end }}

{{/* Labels and annotations by which Kueue takes the Ray resource. */}}
{{- define "consistory-ray.kueueLabels" -}}
{{- if .Values.kueue.queueName }}
kueue.x-k8s.io/queue-name: {{ .Values.kueue.queueName | quote }}
{{- with .Values.kueue.priorityClass }}
kueue.x-k8s.io/priority-class: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "consistory-ray.kueueAnnotations" -}}
{{- if .Values.kueue.elastic }}
kueue.x-k8s.io/elastic-job: "true"
{{- end }}
{{- end }}

{{/* Spec of the RayJob. */}}
{{- define "consistory-ray.rayJobSpec" -}}
entrypoint: {{ printf "%s --submission RAYJOB-NAME" (include "consistory-ray.command" .) | quote }}
submissionMode: K8sJobMode
submitterConfig:
  backoffLimit: {{ int .Values.submitter.backoffLimit }}
submitterPodTemplate:
  {{- include "consistory-ray.submitterPod" (dict "root" .) | nindent 2 }}
# A retry is a new Ray cluster that renders what is missing under the output URL.
backoffLimit: {{ int .Values.run.backoffLimit }}
{{- with .Values.run.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ int . }}
{{- end }}
shutdownAfterJobFinishes: {{ .Values.run.shutdownAfterJobFinishes }}
ttlSecondsAfterFinished: {{ int .Values.run.ttlSecondsAfterFinished }}
{{- if .Values.run.suspend }}
suspend: true
{{- end }}
rayClusterSpec:
  {{- include "consistory-ray.clusterSpec" . | nindent 2 }}
{{- end }}
