"""Activation functions."""

from tests.gradients.case import Case

CASES = [
    *(
        Case(op, [(3, 4)])
        for op in ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Shrink", "Tanh", "Sigmoid")
    ),
    *(Case(op, [(3, 4)]) for op in ("HardSigmoid", "HardSwish", "Softplus", "Softsign", "Mish", "Gelu")),
    *(Case(op, [(3, 4)], {"alpha": alpha}) for op in ("LeakyRelu", "Elu") for alpha in (0.3, -0.3)),
    Case("HardSwish", [(3, 4)], within={0: (-5, 5)}),
    Case("Celu", [(3, 4)], {"alpha": 0.7}),
    Case("Selu", [(3, 4)], {"alpha": 1.1, "gamma": 0.9}),
    Case("Selu", [(3, 4)], {"alpha": -1.1, "gamma": 0.9}),
    Case("ThresholdedRelu", [(3, 4)], {"alpha": 0.2}),
    Case("ThresholdedRelu", [(3, 4)], {"alpha": -0.2}),
    Case("HardSigmoid", [(3, 4)], {"alpha": 0.5, "beta": 0.4}),
    Case("Shrink", [(3, 4)], {"lambd": 0.8, "bias": 0.3}),
    *(Case("PRelu", [(2, 3, 4), s]) for s in [(2, 3, 4), (3, 1), (1,), ()]),
    Case("Swish", [(3, 4)]),
    Case("Swish", [(3, 4)], {"alpha": -0.7}),
    Case("Gelu", [(3, 4)], {"approximate": "tanh"}),
    Case("Gelu", [(2, 3, 4)], {"approximate": "none"}),
    *(Case(op, [(2, 3, 4)], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (0, 1, -1, -3)),
    *(Case(op, [(4,)], {"axis": 0}) for op in ("Softmax", "LogSoftmax")),
    *(Case(op, [(2, 3)]) for op in ("Softmax", "LogSoftmax")),
]
