"""The streamed forward pass: a checkpoint run layer by layer, one expert at a time, in float32.

Agrees with: transformers 5.23 `DeepseekV3ForCausalLM` on the same weights (tests/model/test_parity.py).
Letters: B sequences, S positions, T = B * S tokens, H hidden, I intermediate, V vocabulary, E experts.
"""
