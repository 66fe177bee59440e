//! Logits to tokens: penalties, filters, counter-based draws, log-probabilities.
