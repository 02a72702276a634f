"""The fields of ray.io/v1 and of pods that the manifests use, by the public documentation.

https://docs.ray.io/en/latest/cluster/kubernetes and https://kubernetes.io/docs/reference. Reduced:
whatever is not named here is refused.
"""


def table(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def each(items):
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = table(requests=QUANTITIES, limits=QUANTITIES)
AUTH = table(["mode"], mode={"enum": ["token", "disabled"]})
METADATA = table(["name"], name=TEXT, labels=TEXTS)

CONTAINER = table(
    ["name", "image", "resources"],
    name=TEXT,
    image=TEXT,
    env=each(table(["name", "value"], name=TEXT, value=TEXT)),
    ports=each(table(["containerPort"], name=TEXT, containerPort=COUNT)),
    resources=RESOURCES,
    volumeMounts=each(table(["name", "mountPath"], name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
VOLUME = table(
    ["name"],
    name=TEXT,
    secret=table(["secretName"], secretName=TEXT),
    persistentVolumeClaim=table(["claimName"], claimName=TEXT),
    emptyDir=table(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
POD = table(
    ["containers"],
    serviceAccountName=TEXT,
    securityContext=table(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
    nodeSelector=TEXTS,
    tolerations=each(
        table(
            ["key", "operator"],
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            value=TEXT,
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    terminationGracePeriodSeconds=COUNT,
    containers=each(CONTAINER),
    volumes=each(VOLUME),
)
TEMPLATE = table(["spec"], spec=POD)
CLUSTER = table(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=AUTH,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=table(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources=RESOURCES,
    ),
    headGroupSpec=table(
        ["template", "rayStartParams"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=TEXTS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=each(
        table(
            ["groupName", "template", "rayStartParams"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            labels=TEXTS,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
SCHEMAS = {
    "RayCluster": table(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": "RayCluster"},
        metadata=METADATA,
        spec=CLUSTER,
    ),
    "RayJob": table(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": "RayJob"},
        metadata=METADATA,
        spec=table(
            ["entrypoint", "rayClusterSpec"],
            entrypoint=TEXT,
            backoffLimit=COUNT,
            shutdownAfterJobFinishes=FLAG,
            ttlSecondsAfterFinished=COUNT,
            activeDeadlineSeconds=COUNT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
            runtimeEnvYAML=TEXT,
            rayClusterSpec=CLUSTER,
        ),
    ),
    "PersistentVolumeClaim": table(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "v1"},
        kind={"const": "PersistentVolumeClaim"},
        metadata=METADATA,
        spec=table(
            ["accessModes", "resources"],
            accessModes=each({"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]}),
            resources=RESOURCES,
        ),
    ),
    "ServiceAccount": table(
        ["apiVersion", "kind", "metadata"],
        apiVersion={"const": "v1"},
        kind={"const": "ServiceAccount"},
        metadata=METADATA,
    ),
}
