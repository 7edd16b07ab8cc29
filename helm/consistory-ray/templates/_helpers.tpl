{{/* Name of what is installed. 38 characters leave room for "-" and an 8-digit hash in a RayJob's 47. */}}
{{- define "consistory-ray.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := default (ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name)) .Values.fullnameOverride -}}
{{- /* KubeRay wants names that start with a letter, Helm allows releases that start with a digit. */ -}}
{{- if regexMatch "^[0-9]" $name }}{{ $name = printf "r%s" $name }}{{ end -}}
{{- $name | lower | replace "." "-" | trunc 38 | trimSuffix "-" -}}
{{- end }}

{{/* Labels by which this release's pods are selected; no version in them, so that they never change. */}}
{{- define "consistory-ray.selectorLabels" -}}
app.kubernetes.io/part-of: consistory-ray
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "consistory-ray.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "consistory-ray.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata of an object of the chart: (dict "root" $ "name" "…" "labels" {} "annotations" {}) */}}
{{- define "consistory-ray.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "consistory-ray.labels" .root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (default (dict) .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* metadata of a pod template: (dict "root" $ "component" "worker" "annotations" {}). Only what is stable: a new chart
version must not look like a changed run. */}}
{{- define "consistory-ray.podMetadata" -}}
labels:
  {{- include "consistory-ray.selectorLabels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Image reference: (dict "image" .Values.image "version" .Chart.AppVersion) */}}
{{- define "consistory-ray.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .version .image.tag }}
{{- end -}}
{{- end }}

{{- define "consistory-ray.workerImage" -}}
{{ include "consistory-ray.image" (dict "image" .Values.image "version" .Chart.AppVersion) }}
{{- end }}

{{/* Of head and submitter. What `head.image` leaves out is taken from `image`, but no digest for another repository or tag. */}}
{{- define "consistory-ray.headImage" -}}
{{- $own := .Values.head.image -}}
{{- $image := .Values.image -}}
{{- if or $own.repository $own.tag $own.digest -}}
{{- $image = dict "repository" (default $image.repository $own.repository) "tag" (default $image.tag $own.tag) "digest" $own.digest -}}
{{- end -}}
{{ include "consistory-ray.image" (dict "image" $image "version" .Chart.AppVersion) }}
{{- end }}

{{- define "consistory-ray.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "consistory-ray.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{/* A memory quantity in Mi; -1 for a form that is not understood. */}}
{{- define "consistory-ray.mebibytes" -}}
{{- $unit := regexFind "[A-Za-z]*$" . -}}
{{- $number := trimSuffix $unit . -}}
{{- $factors := dict "Mi" 1.0 "Gi" 1024.0 "Ti" 1048576.0 "M" 0.95367431640625 "G" 953.67431640625 "T" 953674.31640625 -}}
{{- if and (hasKey $factors $unit) (regexMatch "^[0-9]+([.][0-9]+)?$" $number) -}}
{{ mulf (float64 $number) (get $factors $unit) | floor | int64 }}
{{- else -}}
-1
{{- end -}}
{{- end }}

{{/* Size of /dev/shm in Mi for an object store: Ray refuses a store that fills it entirely. */}}
{{- define "consistory-ray.shmMebibytes" -}}
{{ add (mulf (float64 (include "consistory-ray.mebibytes" .)) 1.05 | ceil | int64) 128 }}
{{- end }}

{{- define "consistory-ray.objectStoreBytes" -}}
{{ mul (include "consistory-ray.mebibytes" . | int64) 1048576 }}
{{- end }}

{{/* The worker groups, defaults filled in, as JSON. A group's key replaces the default as a whole; `set` rather than a
merge, because merging would take 0 and false for "not given". `store` is the object store of one pod: the cache memory
of all of its GPUs. Memory that is not given is as much as the caches and the workers of a pod need: 32Gi for each GPU
besides `cacheMemory`. */}}
{{- define "consistory-ray.groups" -}}
{{- $groups := list -}}
{{- range .Values.workerGroups -}}
{{- $group := deepCopy $.Values.worker -}}
{{- range $key, $value := . }}{{ $_ := set $group $key $value }}{{ end -}}
{{- if kindIs "invalid" $group.replicas }}{{ $_ := set $group "replicas" (ternary $group.minReplicas $group.maxReplicas $.Values.ray.autoscaling.enabled) }}{{ end -}}
{{- if kindIs "invalid" $group.idleTimeoutSeconds }}{{ $_ := set $group "idleTimeoutSeconds" $.Values.ray.autoscaling.idleTimeoutSeconds }}{{ end -}}
{{- $workers := max 1 (int $group.gpus) -}}
{{- $cache := include "consistory-ray.mebibytes" $group.cacheMemory | int64 -}}
{{- $_ := set $group "store" (printf "%dMi" (mul $workers $cache)) -}}
{{- $resources := deepCopy (default (dict) $group.resources) -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $requests := default (dict) $resources.requests -}}
{{- if not $limits.memory -}}
{{- $need := mul $workers (add $cache 32768) -}}
{{- $_ := set $limits "memory" (ternary (printf "%dGi" (div $need 1024)) (printf "%dMi" $need) (eq (int (mod $need 1024)) 0)) -}}
{{- end -}}
{{- if not $requests.memory }}{{ $_ := set $requests "memory" $limits.memory }}{{ end -}}
{{- $_ := set $group "resources" (merge (dict "limits" $limits "requests" $requests) $resources) -}}
{{- $groups = append $groups $group -}}
{{- end -}}
{{ toJson $groups }}
{{- end }}

{{- define "consistory-ray.jobConfigMapName" -}}
{{- if .Values.job.existingConfigMap.name -}}
{{ .Values.job.existingConfigMap.name }}
{{- else -}}
{{ include "consistory-ray.fullname" . }}-job-{{ .Values.job.definition | sha256sum | trunc 8 }}
{{- end -}}
{{- end }}

{{/* Name of the mounted job file. Its ending says how to read it, and is that of the key it comes from. */}}
{{- define "consistory-ray.jobFile" -}}
{{- $ending := ext .Values.job.existingConfigMap.key | lower -}}
job{{ ternary $ending ".yaml" (and (ne .Values.job.existingConfigMap.name "") (has $ending (list ".yml" ".json" ".csv" ".parquet"))) }}
{{- end }}

{{/* The revision as text: Helm's --set makes a number of 2. */}}
{{- define "consistory-ray.revision" -}}
{{ if kindIs "string" .Values.run.revision }}{{ .Values.run.revision }}{{ else }}{{ int64 .Values.run.revision }}{{ end }}
{{- end }}

{{/* Where the run finds its job file. A Ray cluster that stays gets it with each submission, into the run's folder:
mounted into the head, every new job would be a new head. */}}
{{- define "consistory-ray.jobPath" -}}
{{- $file := include "consistory-ray.jobFile" . -}}
{{ .Values.job.url | default (ternary (printf "/etc/consistory/job/%s" $file) $file (eq .Values.mode "job")) }}
{{- end }}

{{/* Which pod gets the job file. */}}
{{- define "consistory-ray.jobMountedBy" -}}
{{- if .Values.job.url }}none{{ else if eq .Values.mode "job" }}head{{ else }}submitter{{ end -}}
{{- end }}

{{- define "consistory-ray.outputClaimName" -}}
{{ default (printf "%s-output" (include "consistory-ray.fullname" .)) .Values.output.persistentVolume.existingClaim }}
{{- end }}

{{- define "consistory-ray.modelClaimName" -}}
{{ default (printf "%s-models" (include "consistory-ray.fullname" .)) .Values.model.cache.existingClaim }}
{{- end }}

{{/* `cuda` or `cpu`: what the run renders on. */}}
{{- define "consistory-ray.device" -}}
{{- $gpus := 0 -}}
{{- range include "consistory-ray.groups" . | fromJsonArray }}{{ $gpus = add $gpus (int .gpus) }}{{ end -}}
{{- if eq .Values.run.device "auto" }}{{ ternary "cuda" "cpu" (gt (int $gpus) 0) }}{{ else }}{{ .Values.run.device }}{{ end -}}
{{- end }}

{{/* How many workers the groups of the run's device can grow to. */}}
{{- define "consistory-ray.capacity" -}}
{{- $cuda := eq (include "consistory-ray.device" .) "cuda" -}}
{{- $workers := 0 -}}
{{- range include "consistory-ray.groups" . | fromJsonArray -}}
{{- if eq $cuda (gt (int .gpus) 0) -}}
{{- $most := int (ternary .maxReplicas .replicas $.Values.ray.autoscaling.enabled) -}}
{{- $workers = add $workers (mul $most (max 1 (int .gpus))) -}}
{{- end -}}
{{- end -}}
{{ $workers }}
{{- end }}

{{/* The run's command line. The schema allows only characters that mean nothing to a shell: KubeRay hands this to one.
Workers and device are given because the run cannot see them: it starts before the pods it will get. How much memory
caches may take it reads from the pods that are up. */}}
{{- define "consistory-ray.command" -}}
{{- $capacity := include "consistory-ray.capacity" . | int -}}
consistory-ray render {{ include "consistory-ray.jobPath" . }} -o {{ .Values.output.url }} --address auto --workers {{ int (default $capacity .Values.run.workers) }} --device {{ include "consistory-ray.device" . }} --grace {{ int .Values.run.graceSeconds }}
{{- range .Values.run.extraArgs }} {{ . }}{{ end }}
{{- end }}

{{/* Seconds in which a run that was asked to stop is gone: the batches in hand, then its record and a last scrape. */}}
{{- define "consistory-ray.stopSeconds" -}}
{{ add (int .Values.run.graceSeconds) 60 }}
{{- end }}
