"""Operators whose outputs carry no gradient: integers, booleans, shapes, steps, fresh constants."""

from edgelora_tools.gradients.registry import non_differentiable

# shapes, positions and counts
non_differentiable("Shape", "Size", "NonZero", "ArgMax", "ArgMin", "Unique", "NonMaxSuppression")
non_differentiable("SequenceLength", "SequenceEmpty", "OptionalHasElement")
# truth values
non_differentiable("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf")
non_differentiable("And", "Or", "Xor", "Not")
# bits
non_differentiable("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitCast")
# steps: constant almost everywhere
non_differentiable("Ceil", "Floor", "Round", "Sign", "Hardmax")
non_differentiable("Binarizer", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", domain="ai.onnx.ml")
# texts, and what is made of them or of a file
non_differentiable("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer")
non_differentiable("ImageDecoder")
# values that depend on a shape at most
non_differentiable("Constant", "ConstantOfShape", "EyeLike", "Range")
non_differentiable("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
non_differentiable("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")
