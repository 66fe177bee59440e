//! Stop strings across token borders.

use std::ops::Range;

/// Finds the first stop string in text that arrives in pieces.
///
/// The match that *ends* first wins: that is where generation stops, whatever the pieces were. Of several that end at
/// the same place the longest wins, since it begins first; of equal ones the first given. Text that could still be
/// the beginning of a stop string is held back. The stop string itself is never given out.
///
/// Special tokens have a text that is not part of the output. Only a stop string that names a special token sees it:
/// to such a stop string the tokens' texts read as transformers' `StopStringCriteria` reads them, to all others as the
/// client does.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text held back, hidden text in its place.
    held: String,
    /// Byte ranges of `held` that are never given out, ascending.
    hidden: Vec<Range<usize>>,
    matched: Option<usize>,
}

/// A stop string with its Knuth–Morris–Pratt failure table.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    failure: Vec<usize>,
    /// Bytes of this pattern that the text now ends in.
    state: usize,
    /// Whether hidden text is part of its text.
    sees_hidden: bool,
}

impl StopMatcher {
    /// For these stop strings; an empty one matches nothing (admission refuses it). `names_special` says which of them
    /// hold the text of a special token.
    #[must_use]
    pub fn new(stop: &[String], names_special: impl Fn(&str) -> bool) -> Self {
        let patterns = stop.iter().map(|text| Pattern::new(text, names_special(text))).collect();
        Self { patterns, held: String::new(), hidden: Vec::new(), matched: None }
    }

    /// Whether [`push_hidden`](Self::push_hidden) makes any difference.
    #[must_use]
    pub fn sees_hidden(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.sees_hidden)
    }

    /// Take `text` and append to `out` what can be given out. Returns the index of the stop string once one has
    /// matched; everything after it is dropped, now and in later calls.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.matched.is_none() && self.patterns.is_empty() {
            out.push_str(text);
            return None;
        }
        self.take(text, false, out)
    }

    /// Take the text of a special token, which is not part of the output.
    pub fn push_hidden(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.sees_hidden() { self.take(text, true, out) } else { self.matched }
    }

    fn take(&mut self, text: &str, hidden: bool, out: &mut String) -> Option<usize> {
        if self.matched.is_some() {
            return self.matched;
        }
        let start = self.held.len();
        for (index, byte) in text.bytes().enumerate() {
            if let Some((pattern, length)) = self.step(byte, hidden) {
                self.hold(&text[..=index], start, hidden);
                let end = self.start_of(length, self.patterns[pattern].sees_hidden);
                self.release(end, out);
                self.held.clear();
                self.hidden.clear();
                self.matched = Some(pattern);
                return self.matched;
            }
        }
        self.hold(text, start, hidden);
        // A prefix of a stop string starts with its first byte, so this split is at a code point.
        let starts = self.patterns.iter().map(|pattern| self.start_of(pattern.state, pattern.sees_hidden));
        let ready = starts.min().unwrap_or(self.held.len());
        self.release(ready, out);
        None
    }

    fn hold(&mut self, text: &str, start: usize, hidden: bool) {
        self.held.push_str(text);
        if hidden && !text.is_empty() {
            self.hidden.push(start..self.held.len());
        }
    }

    /// Where in `held` the last `length` bytes begin that a pattern sees.
    fn start_of(&self, length: usize, sees_hidden: bool) -> usize {
        let mut start = self.held.len();
        if sees_hidden || self.hidden.is_empty() {
            return start - length;
        }
        let mut left = length;
        for range in self.hidden.iter().rev() {
            if left <= start - range.end {
                break;
            }
            left -= start - range.end;
            start = range.start;
        }
        start - left
    }

    /// Give out `held` up to `end`, but for what is hidden.
    fn release(&mut self, end: usize, out: &mut String) {
        let mut from = 0;
        for range in self.hidden.iter().take_while(|range| range.start < end) {
            out.push_str(&self.held[from..range.start]);
            from = range.end.min(end);
        }
        out.push_str(&self.held[from..end]);
        self.held.drain(..end);
        self.hidden.retain_mut(|range| {
            *range = range.start.saturating_sub(end)..range.end.saturating_sub(end);
            range.start < range.end
        });
    }

    /// Take `text` in which nothing may match (`min_tokens` not reached): it is given out as it is, and a later match
    /// lies wholly behind it.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        if self.matched.is_none() {
            self.release(self.held.len(), out);
            out.push_str(text);
        }
        self.held.clear();
        self.hidden.clear();
        self.patterns.iter_mut().for_each(|pattern| pattern.state = 0);
    }

    /// No more text follows: append what was held back, unless a stop string matched.
    pub fn finish(&mut self, out: &mut String) {
        if self.matched.is_none() {
            self.release(self.held.len(), out);
        }
        self.held.clear();
        self.hidden.clear();
    }

    /// Bytes held back now, hidden ones among them.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Advance every pattern that sees the byte; the longest that is complete, and its length.
    fn step(&mut self, byte: u8, hidden: bool) -> Option<(usize, usize)> {
        let mut longest: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            if hidden && !pattern.sees_hidden {
                continue;
            }
            let length = pattern.bytes.len();
            if pattern.step(byte) && longest.is_none_or(|(_, best)| length > best) {
                longest = Some((index, length));
            }
        }
        longest
    }
}

impl Pattern {
    fn new(text: &str, sees_hidden: bool) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut failure = vec![0; bytes.len()];
        let mut border = 0;
        for index in 1..bytes.len() {
            while border > 0 && bytes[index] != bytes[border] {
                border = failure[border - 1];
            }
            border += usize::from(bytes[index] == bytes[border]);
            failure[index] = border;
        }
        Self { bytes, failure, state: 0, sees_hidden }
    }

    /// True where the pattern is complete. A complete pattern ends the matcher, so its state is not used again.
    fn step(&mut self, byte: u8) -> bool {
        while self.state > 0 && self.bytes[self.state] != byte {
            self.state = self.failure[self.state - 1];
        }
        if self.bytes.get(self.state) == Some(&byte) {
            self.state += 1;
        }
        !self.bytes.is_empty() && self.state == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let stop: Vec<String> = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stop, |_| false);
        let mut out = String::new();
        let mut matched = None;
        for piece in pieces {
            matched = matcher.push(piece, &mut out);
        }
        matcher.finish(&mut out);
        (out, matched)
    }

    /// The definition: the match with the smallest end, then the longest, then the first given.
    fn naive(stop: &[String], text: &str) -> (String, Option<usize>) {
        let ends = stop.iter().enumerate().filter_map(|(index, pattern)| {
            text.find(pattern.as_str()).map(|start| (start + pattern.len(), start, index))
        });
        match ends.min() {
            Some((_, start, index)) => (text[..start].to_owned(), Some(index)),
            None => (text.to_owned(), None),
        }
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_is_not_given_out() {
        assert_eq!(run(&["END"], &["some text E", "N", "D and more"]), ("some text ".into(), Some(0)));
        assert_eq!(run(&["\n\n"], &["line\n", "line\n", "\nrest"]), ("line\nline".into(), Some(0)));
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held_and_it_comes_out_in_the_end() {
        let mut matcher = StopMatcher::new(&["<stop>".to_owned()], |_| false);
        let mut out = String::new();
        assert_eq!(matcher.push("a <st", &mut out), None);
        assert_eq!((out.as_str(), matcher.held()), ("a ", 3));
        assert_eq!(matcher.push("ep", &mut out), None);
        assert_eq!((out.as_str(), matcher.held()), ("a <step", 0));
        assert_eq!(matcher.push("<", &mut out), None);
        matcher.finish(&mut out);
        assert_eq!(out, "a <step<");
    }

    #[test]
    fn the_match_that_ends_first_wins_and_then_the_longest() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]), ("xa".into(), Some(1)));
        assert_eq!(run(&["c", "abc", "bc"], &["xabc"]), ("x".into(), Some(1)));
        assert_eq!(run(&["z", "q", "q"], &["aq"]), ("a".into(), Some(1)));
    }

    #[test]
    fn nothing_matches_in_passed_text_nor_across_its_end() {
        let mut matcher = StopMatcher::new(&["ab".to_owned()], |_| false);
        let mut out = String::new();
        matcher.pass("ab a", &mut out);
        assert_eq!(matcher.push("b ab", &mut out), Some(0));
        assert_eq!(out, "ab ab ");
    }

    #[test]
    fn after_a_match_nothing_more_comes_out() {
        let mut matcher = StopMatcher::new(&["x".to_owned()], |_| false);
        let mut out = String::new();
        assert_eq!(matcher.push("ax", &mut out), Some(0));
        assert_eq!(matcher.push("more", &mut out), Some(0));
        matcher.pass("more", &mut out);
        matcher.finish(&mut out);
        assert_eq!(out, "a");
    }

    /// Pieces in angle brackets are special tokens.
    fn run_hidden(stop: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let stop: Vec<String> = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stop, |text| text.contains('<'));
        let mut out = String::new();
        let mut matched = None;
        for piece in pieces {
            matched = match piece.starts_with('<') {
                true => matcher.push_hidden(piece, &mut out),
                false => matcher.push(piece, &mut out),
            };
        }
        matcher.finish(&mut out);
        (out, matched)
    }

    #[test]
    fn a_stop_string_that_names_a_special_token_sees_it_and_others_do_not() {
        assert_eq!(run_hidden(&["<end>"], &["some ", "text", "<end>", "more"]), ("some text".into(), Some(0)));
        assert_eq!(run_hidden(&["xt<end>!"], &["some ", "text", "<end>", "!"]), ("some te".into(), Some(0)));
        assert_eq!(run_hidden(&["xt<end>!"], &["some ", "text", "<end>", "?"]), ("some text?".into(), None));
        // Text on both sides of it is one text to a client that does not see it.
        assert_eq!(run_hidden(&["ab", "<end>!"], &["xa", "<end>", "b"]), ("x".into(), Some(0)));
        assert_eq!(run_hidden(&["abc", "<end>!"], &["xa", "<end>", "b", "<end>", "d"]), ("xabd".into(), None));
        assert_eq!(run_hidden(&["nd", "<x>"], &["a", "<end>", "b"]), ("ab".into(), None));
        // Written out in ordinary tokens it is the same text.
        assert_eq!(run_hidden(&["[<end>]"], &["a[", "<end>", "]b"]), ("a".into(), Some(0)));
    }

    proptest! {
        #[test]
        fn hidden_text_is_never_given_out_and_every_stop_string_reads_its_own_text(
            pieces in proptest::collection::vec(("[ab]{0,3}", any::<bool>()), 0..12),
            stop in proptest::collection::vec(("[ab]{1,4}", any::<bool>()), 1..4),
        ) {
            let texts: Vec<String> = stop.iter().map(|(text, _)| text.clone()).collect();
            let sees: Vec<bool> = stop.iter().map(|(text, _)| stop.iter().any(|(other, sees)| other == text && *sees)).collect();
            let mut matcher = StopMatcher::new(&texts, |text| texts.iter().zip(&sees).any(|(other, sees)| other == text && *sees));
            let (mut out, mut matched) = (String::new(), None);
            for (text, hidden) in &pieces {
                matched = if *hidden { matcher.push_hidden(text, &mut out) } else { matcher.push(text, &mut out) };
            }
            matcher.finish(&mut out);
            // The definition, byte by byte: the first place where any stop string ends the text that it sees.
            let all: Vec<(char, bool)> = pieces.iter().flat_map(|(text, hidden)| text.chars().map(|c| (c, *hidden))).collect();
            let mut wanted = (all.iter().filter(|(_, hidden)| !hidden).map(|(c, _)| *c).collect::<String>(), None);
            'search: for end in 1..=all.len() {
                let mut best: Option<(usize, usize)> = None;
                for (index, text) in texts.iter().enumerate() {
                    if all[end - 1].1 && !sees[index] {
                        continue;
                    }
                    let seen: Vec<usize> = (0..end).filter(|at| sees[index] || !all[*at].1).collect();
                    let read: String = seen.iter().map(|at| all[*at].0).collect();
                    if read.ends_with(text.as_str()) && best.is_none_or(|(_, length)| text.len() > length) {
                        best = Some((index, text.len()));
                    }
                }
                if let Some((index, length)) = best {
                    let seen: Vec<usize> = (0..end).filter(|at| sees[index] || !all[*at].1).collect();
                    let start = seen[seen.len() - length];
                    wanted = (all[..start].iter().filter(|(_, hidden)| !hidden).map(|(c, _)| *c).collect(), Some(index));
                    break 'search;
                }
            }
            prop_assert_eq!((out, matched), wanted);
        }

        #[test]
        fn any_chunking_agrees_with_a_search_of_the_whole_text(
            text in "[abé🦀]{0,40}",
            stop in proptest::collection::vec("[abé🦀]{1,5}", 0..4),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let characters: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(characters.len() + 1)).collect();
            cuts.extend([0, characters.len()]);
            cuts.sort_unstable();
            let mut matcher = StopMatcher::new(&stop, |_| false);
            let (mut out, mut matched) = (String::new(), None);
            let (wanted, wanted_match) = naive(&stop, &text);
            for pair in cuts.windows(2) {
                let piece: String = characters[pair[0]..pair[1]].iter().collect();
                matched = matcher.push(&piece, &mut out);
                prop_assert!(wanted.starts_with(&out), "gave out what it should have held");
            }
            matcher.finish(&mut out);
            prop_assert_eq!((out, matched), (wanted, wanted_match));
        }
    }
}
