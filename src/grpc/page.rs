//! Pages of a list (AIP-158). A page token is opaque to clients: it says after which name the next page begins.

use crate::types::{AdapterName, Problem, ToProblem};

const DEFAULT_SIZE: i32 = 100;
const MAX_SIZE: i32 = 1000;
/// Tells our tokens from text that a client made up.
const TOKEN_PREFIX: &str = "after:";

/// Why a page cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPage {
    /// Sizes are not negative.
    #[error("page_size {given} is negative")]
    NegativeSize {
        /// As asked for.
        given: i32,
    },
    /// Not a token of a page before.
    #[error("page_token is not one that this server gave")]
    BadToken,
}

impl ToProblem for BadPage {
    fn to_problem(&self) -> Problem {
        let field = match self {
            Self::NegativeSize { .. } => "page_size",
            Self::BadToken => "page_token",
        };
        Problem::invalid("INVALID_FIELD", field, self)
    }
}

/// Adapters a page may hold. 0 is the default, too many are cut to the limit.
pub(super) fn size(given: i32) -> Result<usize, BadPage> {
    match given {
        i32::MIN..0 => Err(BadPage::NegativeSize { given }),
        0 => Ok(DEFAULT_SIZE as usize),
        1.. => Ok(given.min(MAX_SIZE) as usize),
    }
}

/// The name after which the page begins; `None` is the first page.
pub(super) fn after(token: &str) -> Result<Option<AdapterName>, BadPage> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(token).map_err(|_| BadPage::BadToken)?;
    let text = String::from_utf8(bytes).map_err(|_| BadPage::BadToken)?;
    let name = text.strip_prefix(TOKEN_PREFIX).ok_or(BadPage::BadToken)?;
    name.parse().map(Some).map_err(|_| BadPage::BadToken)
}

/// The token of the page after `last`.
pub(super) fn token(last: &AdapterName) -> String {
    hex::encode(format!("{TOKEN_PREFIX}{last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_to_the_name_it_was_made_of() {
        let longest = format!("{0}/{0}", "x".repeat(64));
        for name in ["sql-v2", "Org/Name", "Foo", "foo", &longest] {
            let name: AdapterName = name.parse().unwrap();
            assert_eq!(after(&token(&name)), Ok(Some(name)));
        }
        assert_eq!(after(""), Ok(None));
    }

    #[test]
    fn made_up_tokens_are_refused() {
        for bad in ["x", "zz", "sql-v2", "6166", "+a", "é", &"00".repeat(200), &token(&"a".parse().unwrap())[2..]] {
            assert_eq!(after(bad), Err(BadPage::BadToken), "{bad:?}");
        }
    }

    #[test]
    fn sizes_follow_aip_158() {
        assert_eq!(size(-1), Err(BadPage::NegativeSize { given: -1 }));
        assert_eq!((size(0), size(7), size(i32::MAX)), (Ok(100), Ok(7), Ok(1000)));
    }
}
