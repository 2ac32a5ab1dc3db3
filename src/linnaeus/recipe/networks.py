"""Names of the networks, for checks that must not wait for torch; a test compares them with `models.MODELS`."""

NETWORKS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "plain20",
    "plain32",
    "plain44",
    "plain56",
    "mini_resnet",
    "digit_resnet",
    "inception_v1",
)
