//! A receipt as text: one JSON object without blanks, fields in one order, and at its end the digest of what comes before.

use serde_json::{Map, Value};

use super::document::{FORMAT, Receipt};
use super::error::ReceiptError;
use crate::types::Sha256Digest;

const FORMAT_FIELD: &str = "polydelta_receipt";
const DIGEST_FIELD: &str = "digest";

impl Receipt {
    /// Its text. The last field, `digest`, is the sha256 of the text without that field: of the object of all others.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.content();
        let digest = Sha256Digest::of(text.as_bytes());
        text.pop();
        text.push_str(&format!(",\"{DIGEST_FIELD}\":\"{digest}\"}}"));
        text
    }

    /// The digest of it, which its text ends with.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(self.content().as_bytes())
    }

    /// Read a text. Blanks and the order of fields may have been changed on the way, nothing else.
    ///
    /// # Errors
    /// [`ReceiptError`], for everything that is not as it was made.
    pub fn read(text: &[u8]) -> Result<Self, ReceiptError> {
        let no_receipt = |reason: String| ReceiptError::NotAReceipt { reason };
        let value: Value = serde_json::from_slice(text).map_err(|error| no_receipt(error.to_string()))?;
        let Value::Object(mut fields) = value else { return Err(no_receipt("it is no JSON object".to_owned())) };
        match fields.get(FORMAT_FIELD).map(Value::as_u64) {
            Some(Some(format)) if format == u64::from(FORMAT) => {}
            Some(Some(format)) => return Err(ReceiptError::Format { format }),
            _ => return Err(no_receipt(format!("it has no {FORMAT_FIELD}"))),
        }
        let said = take_text(&mut fields, DIGEST_FIELD)?;
        let field = |error: serde_json::Error| ReceiptError::Field { reason: error.to_string() };
        let receipt: Self = serde_json::from_value(Value::Object(fields)).map_err(field)?;
        let found = receipt.digest();
        if said != found.to_string() {
            return Err(ReceiptError::Changed { said, found });
        }
        Ok(receipt)
    }

    /// All but the digest.
    fn content(&self) -> String {
        // Keys are texts and numbers, and nothing in it fails: there is no other error.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn take_text(fields: &mut Map<String, Value>, name: &str) -> Result<String, ReceiptError> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(ReceiptError::Field { reason: format!("its {name} is no text") }),
        None => Err(ReceiptError::Field { reason: format!("it has no {name}") }),
    }
}
