"""The terms of the training objective, one module each, as pure functions of tensors in fp32."""
