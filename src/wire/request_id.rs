//! Request ids: taken from the client, else made here, and returned.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue, Response};

const HEADER: &str = "x-request-id";
const MAX_LEN: usize = 128;

/// Makes ids that are unique within the process and hard to mistake for those of another.
#[derive(Clone)]
pub(crate) struct RequestIds {
    process: u64,
    next: Arc<AtomicU64>,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        // RandomState is seeded by the operating system.
        Self { process: RandomState::new().hash_one(std::process::id()), next: Arc::default() }
    }

    /// The id of a call: the client's where it is usable, else a new one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> String {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok()).filter(|id| is_valid(id));
        given.map_or_else(|| self.make(), str::to_owned)
    }

    fn make(&self) -> String {
        format!("{:016x}{:016x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// 1 to 128 printable ASCII characters.
pub(crate) fn is_valid(id: &str) -> bool {
    (1..=MAX_LEN).contains(&id.len()) && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Put the id on a response, unless its handler did.
pub(crate) fn stamp<B>(mut response: Response<B>, request_id: &str) -> Response<B> {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().entry(HEADER).or_insert(value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usable_id_of_the_client_is_kept_and_any_other_replaced() {
        let ids = RequestIds::new();
        let with =
            |value: &str| HeaderMap::from_iter([(http::HeaderName::from_static(HEADER), value.parse().unwrap())]);
        assert_eq!(ids.of(&with("trace-7")), "trace-7");
        let (first, second) = (ids.of(&with("")), ids.of(&with(&"x".repeat(129))));
        assert_eq!(first.len(), 32);
        assert_ne!(first, second);
        assert_ne!(ids.of(&HeaderMap::new()), second);
    }
}
