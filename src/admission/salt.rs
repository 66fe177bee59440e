//! Whose KV a request may find in the prefix cache.
//!
//! A hit is faster than a miss, so whoever can send prompts can guess what others have sent, where their blocks are
//! shared. So by default they are not: the client is part of the key. Requests that name the same `cache_salt` share,
//! whoever sends them; a salt that nobody else knows shares with nobody.

use std::sync::Arc;

use crate::types::ClientKey;

/// Most bytes of a request's `cache_salt`.
pub(super) const MAX_CACHE_SALT_BYTES: u64 = 128;

/// Who shares with whom, where a request does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixSalting {
    /// Requests of one client.
    #[default]
    ByClient,
    /// Everybody.
    Shared,
}

impl PrefixSalting {
    /// The salt of a request; requests find the blocks of those that have the same. A salt that was named is never one
    /// of a client.
    pub(super) fn salt(self, client: ClientKey, cache_salt: &str) -> Arc<[u8]> {
        const NAMED: u8 = 1;
        const CLIENT: u8 = 2;
        match self {
            _ if !cache_salt.is_empty() => [&[NAMED], cache_salt.as_bytes()].concat().into(),
            Self::ByClient => [&[CLIENT], &client.0[..]].concat().into(),
            Self::Shared => Arc::from([]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_share_only_by_a_salt_that_both_name_or_where_all_do() {
        let (a, b) = (ClientKey([1; 32]), ClientKey([2; 32]));
        let own = PrefixSalting::ByClient;
        assert_ne!(own.salt(a, ""), own.salt(b, ""));
        assert_eq!(own.salt(a, ""), own.salt(a, ""));
        assert_eq!(own.salt(a, "team"), own.salt(b, "team"));
        assert_ne!(own.salt(a, "team"), own.salt(a, "other"));
        assert_ne!(own.salt(a, "team"), own.salt(a, ""));
        let all = PrefixSalting::Shared;
        assert_eq!(all.salt(a, ""), all.salt(b, ""));
        assert_ne!(all.salt(a, "team"), all.salt(b, ""));
        let forged = String::from_utf8(vec![2; 33]).unwrap();
        assert_ne!(own.salt(a, &forged), own.salt(b, ""), "no name is the salt of a client");
    }
}
