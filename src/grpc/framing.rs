//! Messages in a stream, each behind a prefix that says how long it is (gRPC over HTTP/2, Length-Prefixed-Message).

/// Length of the prefix of a message: a flag, and four bytes of length.
const PREFIX: usize = 5;

/// Where in a stream of length-prefixed messages we are.
#[derive(Debug, Default)]
pub(super) struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that have come.
    have: usize,
    /// Bytes of the message still to come, once its prefix is whole.
    left: u64,
}

impl Framing {
    /// No message has begun, or the last one is whole.
    pub(super) fn between(&self) -> bool {
        self.have == 0
    }

    /// Go over some of `data`, at most to the end of a prefix or of a message: how many bytes, and the length of the
    /// message if its prefix became whole.
    pub(super) fn advance(&mut self, data: &[u8]) -> (usize, Option<u64>) {
        if self.have < PREFIX {
            let taken = data.len().min(PREFIX - self.have);
            self.prefix[self.have..self.have + taken].copy_from_slice(&data[..taken]);
            self.have += taken;
            if self.have < PREFIX {
                return (taken, None);
            }
            let [_, a, b, c, d] = self.prefix;
            self.left = u64::from(u32::from_be_bytes([a, b, c, d]));
            let length = self.left;
            self.end_if_whole();
            return (taken, Some(length));
        }
        let taken = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
        self.left -= taken as u64;
        self.end_if_whole();
        (taken, None)
    }

    fn end_if_whole(&mut self) {
        if self.left == 0 {
            self.have = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(length: u32) -> Vec<u8> {
        [vec![0], length.to_be_bytes().to_vec()].concat()
    }

    proptest! {
        #[test]
        fn messages_are_found_however_they_are_cut(
            lengths in prop::collection::vec(0u32..40, 0..8),
            cuts in prop::collection::vec(1usize..12, 1..20),
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|length| [prefix(*length), vec![9; *length as usize]].concat()).collect();
            let (mut framing, mut found, mut rest) = (Framing::default(), Vec::new(), &stream[..]);
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let mut piece;
                (piece, rest) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                while !piece.is_empty() {
                    let (taken, began) = framing.advance(piece);
                    prop_assert!(taken > 0);
                    piece = &piece[taken..];
                    found.extend(began.map(|length| length as u32));
                }
            }
            prop_assert!(framing.between());
            prop_assert_eq!(found, lengths);
        }
    }
}
