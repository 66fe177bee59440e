//! One decoder described by data: DecoderSpec from config.json, the checkpoint loader, the forward pass with delta ops.
