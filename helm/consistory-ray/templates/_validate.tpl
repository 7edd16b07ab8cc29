{{/* What the schema cannot say. All problems are reported at once. */}}
{{- define "consistory-ray.validate" -}}
{{- $problems := list -}}
{{- $v := .Values -}}
{{- if not $v.image.repository }}{{ $problems = append $problems "image.repository: give the image built from cluster/Dockerfile" }}{{ end -}}
{{- if not $v.output.url }}{{ $problems = append $problems "output.url: say where the pictures go, for example s3://bucket/run" }}{{ end -}}

{{- $sources := list -}}
{{- if $v.job.definition }}{{ $sources = append $sources "job.definition" }}{{ end -}}
{{- if $v.job.url }}{{ $sources = append $sources "job.url" }}{{ end -}}
{{- if $v.job.existingConfigMap.name }}{{ $sources = append $sources "job.existingConfigMap.name" }}{{ end -}}
{{- if eq (len $sources) 0 }}{{ $problems = append $problems "job: give a job file, for example --set-file job.definition=job.yaml" }}{{ end -}}
{{- if gt (len $sources) 1 }}{{ $problems = append $problems (printf "job: give one of %s" (join ", " $sources)) }}{{ end -}}
{{- if $v.job.definition -}}
{{- $job := fromYaml $v.job.definition -}}
{{- if hasKey $job "Error" }}{{ $problems = append $problems (printf "job.definition: not a YAML mapping (%s)" ($job.Error | trunc 200)) }}{{ end -}}
{{- end -}}

{{- $claim := $v.output.persistentVolume -}}
{{- $path := trimPrefix "file://" $v.output.url -}}
{{- if and $v.output.url (hasPrefix "/" $path) -}}
{{- if not $claim.enabled }}{{ $problems = append $problems "output.url: a path inside a pod is lost with the pod; set output.persistentVolume.enabled or use a bucket" }}
{{- else if not (or (eq $path $claim.mountPath) (hasPrefix (printf "%s/" $claim.mountPath) $path)) }}{{ $problems = append $problems (printf "output.url: %s does not lie under output.persistentVolume.mountPath (%s)" $path $claim.mountPath) }}{{ end -}}
{{- else if $claim.enabled }}{{ $problems = append $problems (printf "output.persistentVolume.enabled: output.url (%s) is not a path; use one of them" $v.output.url) }}{{ end -}}
{{- /* Head and workers share a claim that the chart makes; one that exists is its owner's business. */ -}}
{{- $shared := dict -}}
{{- if and $claim.enabled (not $claim.existingClaim) }}{{ $_ := set $shared "output.persistentVolume" $claim }}{{ end -}}
{{- if and (eq $v.model.cache.type "persistentVolume") (not $v.model.cache.existingClaim) }}{{ $_ := set $shared "model.cache" $v.model.cache }}{{ end -}}
{{- range $key, $made := $shared -}}
{{- if not (or (has "ReadWriteMany" $made.accessModes) (and $made.singleNode (has "ReadWriteOnce" $made.accessModes))) }}{{ $problems = append $problems (printf "%s.accessModes: head and workers mount it on several nodes; use ReadWriteMany, or ReadWriteOnce and %s.singleNode" $key $key) }}{{ end -}}
{{- end -}}

{{- if and (eq $v.mode "job") (gt (int $v.run.ttlSecondsAfterFinished) 0) (not $v.run.shutdownAfterJobFinishes) }}{{ $problems = append $problems "run.ttlSecondsAfterFinished: has no effect without run.shutdownAfterJobFinishes; set it to 0" }}{{ end -}}
{{- if and $v.run.suspend (ne $v.mode "job") }}{{ $problems = append $problems "run.suspend: only for mode job" }}{{ end -}}
{{- if and $v.run.suspend (not $v.run.shutdownAfterJobFinishes) }}{{ $problems = append $problems "run.suspend: needs run.shutdownAfterJobFinishes" }}{{ end -}}

{{- $names := list -}}
{{- $device := include "consistory-ray.device" . -}}
{{- range include "consistory-ray.groups" . | fromJsonArray -}}
{{- $where := printf "workerGroups[%s]" .name -}}
{{- if has .name $names }}{{ $problems = append $problems (printf "%s: the name is used twice" $where) }}{{ end -}}
{{- $names = append $names .name -}}
{{- if and (eq $v.mode "job") (ne (eq $device "cuda") (gt (int .gpus) 0)) }}{{ $problems = append $problems (printf "%s: has %s gpus, and the run renders on %s: it would never render; leave it out, or set run.device" $where (ternary "no" (toString (int .gpus)) (eq (int .gpus) 0)) $device) }}{{ end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) }}{{ $problems = append $problems (printf "%s: minReplicas (%v) is more than maxReplicas (%v)" $where .minReplicas .maxReplicas) }}{{ end -}}
{{- if or (lt (int .replicas) (int .minReplicas)) (gt (int .replicas) (int .maxReplicas)) }}{{ $problems = append $problems (printf "%s: replicas (%v) is not between minReplicas (%v) and maxReplicas (%v)" $where .replicas .minReplicas .maxReplicas) }}{{ end -}}
{{- $limit := .resources.limits.memory | toString -}}
{{- $have := include "consistory-ray.mebibytes" $limit | int64 -}}
{{- $besides := ternary 2048 (mul 12288 (int .gpus)) (eq (int .gpus) 0) | int64 -}}
{{- $need := add (include "consistory-ray.shmMebibytes" .store | int64) $besides -}}
{{- if and (gt $have 0) (lt $have $need) }}{{ $problems = append $problems (printf "%s: resources.limits.memory (%s) has to hold cacheMemory (%s%s) and at least %dGi besides: give %dGi, or leave it out" $where $limit .cacheMemory (ternary (printf " for each of %d GPUs" (int .gpus)) "" (gt (int .gpus) 1)) (div $besides 1024) (div (add $need 1023) 1024)) }}{{ end -}}
{{- end -}}
{{- if eq (include "consistory-ray.capacity" . | int) 0 }}{{ $problems = append $problems (printf "workerGroups: no pod would ever render on %s; give a group%s replicas" $device (ternary " with gpus" "" (eq $device "cuda"))) }}{{ end -}}
{{- if has "--grace" $v.run.extraArgs }}{{ $problems = append $problems "run.extraArgs: give the grace as run.graceSeconds, the pods' own times follow from it" }}{{ end -}}
{{- $headLimit := include "consistory-ray.mebibytes" (dig "limits" "memory" "" $v.head.resources | toString) | int64 -}}
{{- if and (gt $headLimit 0) (lt $headLimit (add (include "consistory-ray.shmMebibytes" $v.head.objectStoreMemory | int64) 1024)) }}{{ $problems = append $problems "head.resources.limits.memory: has to hold head.objectStoreMemory and at least 1Gi besides" }}{{ end -}}

{{- if and $v.model.prefetch.repository (eq $v.model.cache.type "none") }}{{ $problems = append $problems "model.prefetch.repository: needs a model.cache to put the model into" }}{{ end -}}
{{- if and $v.kueue.queueName $v.ray.autoscaling.enabled (not $v.kueue.elastic) }}{{ $problems = append $problems "kueue.queueName: Kueue reserves a fixed size; set ray.autoscaling.enabled to false, or kueue.elastic" }}{{ end -}}
{{- if and $v.kueue.queueName (not $v.run.shutdownAfterJobFinishes) (eq $v.mode "job") }}{{ $problems = append $problems "kueue.queueName: needs run.shutdownAfterJobFinishes" }}{{ end -}}
{{- if and $v.kueue.queueName (gt (len $v.workerGroups) 7) }}{{ $problems = append $problems "kueue.queueName: Kueue takes at most 7 worker groups" }}{{ end -}}
{{- if and $v.kueue.queueName (has "head" $names) }}{{ $problems = append $problems "workerGroups[head]: Kueue keeps this name for the head" }}{{ end -}}
{{- if and (not $v.kueue.queueName) (or $v.kueue.elastic $v.kueue.priorityClass) }}{{ $problems = append $problems "kueue.queueName: give one, or leave kueue.elastic and kueue.priorityClass unset" }}{{ end -}}

{{- if and $v.ray.autoscaling.enabled (not $v.serviceAccount.create) (not $v.serviceAccount.name) }}{{ $problems = append $problems "serviceAccount.name: KubeRay gives the head's service account rights to scale; name one, so that it is not `default`, which every pod of the namespace has" }}{{ end -}}
{{- if and $v.ray.auth.existingSecret (ne $v.ray.auth.mode "token") }}{{ $problems = append $problems "ray.auth.existingSecret: only for ray.auth.mode token" }}{{ end -}}
{{- if and $v.monitoring.podMonitor.enabled $v.monitoring.serviceMonitor.enabled }}{{ $problems = append $problems "monitoring: podMonitor and serviceMonitor would scrape the same metrics twice; enable one" }}{{ end -}}
{{- if and (or $v.monitoring.podMonitor.enabled $v.monitoring.serviceMonitor.enabled) (not $v.monitoring.port) }}{{ $problems = append $problems "monitoring.port: is 0, there is nothing to scrape" }}{{ end -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.monitoringNamespace) (or $v.monitoring.podMonitor.enabled $v.monitoring.serviceMonitor.enabled) }}{{ $problems = append $problems "networkPolicy.monitoringNamespace: is empty, Prometheus could not scrape" }}{{ end -}}

{{- if $problems -}}
{{- fail (printf "\n\nthe values cannot be used:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end }}
