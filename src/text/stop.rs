//! Stop strings across token borders.

/// Finds the first stop string in text that arrives in pieces.
///
/// The match that *ends* first wins: that is where generation stops, whatever the pieces were. Of several that end at
/// the same place the longest wins, since it begins first; of equal ones the first given. Text that could still be
/// the beginning of a stop string is held back. The stop string itself is never given out.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: String,
    matched: Option<usize>,
}

/// A stop string with its Knuth–Morris–Pratt failure table.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    failure: Vec<usize>,
    /// Bytes of this pattern that the text now ends in.
    state: usize,
}

impl StopMatcher {
    /// For these stop strings; an empty one matches nothing (admission refuses it).
    #[must_use]
    pub fn new(stop: &[String]) -> Self {
        Self { patterns: stop.iter().map(|text| Pattern::new(text)).collect(), held: String::new(), matched: None }
    }

    /// Take `text` and append to `out` what can be given out. Returns the index of the stop string once one has
    /// matched; everything after it is dropped, now and in later calls.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.matched.is_some() {
            return self.matched;
        }
        if self.patterns.is_empty() {
            out.push_str(text);
            return None;
        }
        for (index, byte) in text.bytes().enumerate() {
            if let Some((pattern, length)) = self.step(byte) {
                self.held.push_str(&text[..=index]);
                self.held.truncate(self.held.len() - length);
                out.push_str(&self.held);
                self.held.clear();
                self.matched = Some(pattern);
                return self.matched;
            }
        }
        self.held.push_str(text);
        // A prefix of a stop string starts with its first byte, so this split is at a code point.
        let keep = self.patterns.iter().map(|pattern| pattern.state).max().unwrap_or(0);
        let ready = self.held.len() - keep;
        out.push_str(&self.held[..ready]);
        self.held.drain(..ready);
        None
    }

    /// Take `text` in which nothing may match (`min_tokens` not reached): it is given out as it is, and a later match
    /// lies wholly behind it.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        if self.matched.is_none() {
            out.push_str(&self.held);
            out.push_str(text);
        }
        self.held.clear();
        self.patterns.iter_mut().for_each(|pattern| pattern.state = 0);
    }

    /// No more text follows: append what was held back, unless a stop string matched.
    pub fn finish(&mut self, out: &mut String) {
        if self.matched.is_none() {
            out.push_str(&self.held);
        }
        self.held.clear();
    }

    /// Bytes held back now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Advance every pattern; the longest that is complete, and its length.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut longest: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let length = pattern.bytes.len();
            if pattern.step(byte) && longest.is_none_or(|(_, best)| length > best) {
                longest = Some((index, length));
            }
        }
        longest
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
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
        Self { bytes, failure, state: 0 }
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
        let mut matcher = StopMatcher::new(&stop);
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
        let mut matcher = StopMatcher::new(&["<stop>".to_owned()]);
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
        let mut matcher = StopMatcher::new(&["ab".to_owned()]);
        let mut out = String::new();
        matcher.pass("ab a", &mut out);
        assert_eq!(matcher.push("b ab", &mut out), Some(0));
        assert_eq!(out, "ab ab ");
    }

    #[test]
    fn after_a_match_nothing_more_comes_out() {
        let mut matcher = StopMatcher::new(&["x".to_owned()]);
        let mut out = String::new();
        assert_eq!(matcher.push("ax", &mut out), Some(0));
        assert_eq!(matcher.push("more", &mut out), Some(0));
        matcher.pass("more", &mut out);
        matcher.finish(&mut out);
        assert_eq!(out, "a");
    }

    proptest! {
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
            let mut matcher = StopMatcher::new(&stop);
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
