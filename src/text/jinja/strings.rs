//! Python's operations on text. Callers charge the budget.

use super::lexer::is_space;

/// HTML's special characters, as markupsafe writes them.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
    out
}

/// `strip`, `lstrip` and `rstrip`: white space, or the characters of `set`.
pub(super) fn strip<'t>(text: &'t str, set: Option<&str>, left: bool, right: bool) -> &'t str {
    let out = |character: char| set.map_or_else(|| is_space(character), |set| set.contains(character));
    let text = if left { text.trim_start_matches(out) } else { text };
    if right { text.trim_end_matches(out) } else { text }
}

/// `split`: at most `limit` times; a separator of `None` is any run of white space.
pub(super) fn split<'t>(text: &'t str, separator: Option<&str>, limit: Option<usize>) -> Vec<&'t str> {
    if let Some(separator) = separator {
        return match limit {
            Some(limit) => text.splitn(limit.saturating_add(1), separator).collect(),
            None => text.split(separator).collect(),
        };
    }
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if limit.is_some_and(|limit| parts.len() >= limit) {
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

/// `rsplit`: `split` from the right.
pub(super) fn rsplit<'t>(text: &'t str, separator: Option<&str>, limit: Option<usize>) -> Vec<&'t str> {
    let Some(limit) = limit else { return split(text, separator, None) };
    let mut parts: Vec<&str>;
    if let Some(separator) = separator {
        parts = text.rsplitn(limit.saturating_add(1), separator).collect();
    } else {
        parts = Vec::new();
        let mut rest = text.trim_end_matches(is_space);
        while !rest.is_empty() {
            if parts.len() >= limit {
                parts.push(rest);
                break;
            }
            let last = rest.char_indices().rev().find(|(_, character)| is_space(*character));
            let start = last.map_or(0, |(at, character)| at + character.len_utf8());
            parts.push(&rest[start..]);
            rest = rest[..start].trim_end_matches(is_space);
        }
    }
    parts.reverse();
    parts
}

/// `splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |character: char| {
        matches!(character, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push(rest);
            break;
        };
        let first = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { first };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    lines
}

/// `capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return String::new() };
    titled(first) + &characters.as_str().to_lowercase()
}

/// One character as the first of a title: of a character that has several in upper case, the first alone.
fn titled(character: char) -> String {
    let mut upper = character.to_uppercase();
    let first = upper.next().map(String::from).unwrap_or_default();
    first + &upper.collect::<String>().to_lowercase()
}

/// The method `title`: what follows a letter is in lower case.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.push_str(&titled(character));
        }
        inside = is_cased(character);
    }
    out
}

/// The filter `title`: words begin behind white space, `-`, `(`, `{`, `[` and `<`.
pub(super) fn title_words(text: &str) -> String {
    let begins = |character: char| is_space(character) || matches!(character, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive(begins) {
        let mut characters = part.chars();
        if let Some(first) = characters.next() {
            out.extend(first.to_uppercase());
            out.push_str(&characters.as_str().to_lowercase());
        }
    }
    out
}

pub(super) fn swap_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_uppercase() {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
    }
    out
}

fn is_cased(character: char) -> bool {
    character.is_uppercase() || character.is_lowercase()
}

/// `isupper` and `islower`: at least one cased character, and all of them so.
pub(super) fn all_cased(text: &str, upper: bool) -> bool {
    let mut cased = text.chars().filter(|character| is_cased(*character)).peekable();
    cased.peek().is_some() && cased.all(|character| character.is_uppercase() == upper)
}

/// `istitle`.
pub(super) fn is_title(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for character in text.chars() {
        if character.is_uppercase() && inside || character.is_lowercase() && !inside {
            return false;
        }
        inside = is_cased(character);
        any |= inside;
    }
    any
}

/// `zfill`, `ljust`, `rjust`, `center`: `width` counts characters.
pub(super) fn pad(text: &str, width: usize, fill: char, left: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = left.min(missing);
    let fill = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    fill(left) + text + &fill(missing - left)
}

/// How much of the padding `center` puts on the left.
pub(super) fn center_left(length: usize, width: usize) -> usize {
    let missing = width.saturating_sub(length);
    missing / 2 + (missing & width & 1)
}

/// Bytes of `text` that `[start:end]` in characters takes; `None` where start lies behind end.
pub(super) fn window(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, usize)> {
    if start.is_none() && end.is_none() {
        return Some((0, text.len()));
    }
    let length = text.chars().count() as i64;
    let clamp = |bound: i64| if bound < 0 { (bound + length).max(0) } else { bound.min(length) };
    if start.is_some_and(|start| start > length) {
        return None;
    }
    let (start, end) = (start.map_or(0, clamp), end.map_or(length, clamp));
    if start > end {
        return None;
    }
    let byte = |place: i64| {
        let place = usize::try_from(place).unwrap_or(0);
        text.char_indices().nth(place).map_or(text.len(), |(at, _)| at)
    };
    Some((byte(start), byte(end)))
}
