//! Source to tokens, white space between tags and text handled as `trim_blocks` and `lstrip_blocks` want it.

use super::error::SyntaxError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Data(String),
    PrintBegin,
    PrintEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Text(String),
    Int(i64),
    Float(f64),
    Operator(&'static str),
    End,
}

/// A token and its line.
pub(super) type Located = (u32, Token);

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

pub(super) fn tokens(source: &str) -> Result<Vec<Located>, SyntaxError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, position: 0, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.run()?;
    Ok(lexer.tokens)
}

/// What Python's `str.isspace` takes for white space.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

struct Lexer<'s> {
    source: &'s str,
    position: usize,
    line: u32,
    /// The last thing taken ended with a line.
    line_starting: bool,
    tokens: Vec<Located>,
}

/// How the tag that a text stands before wants it stripped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strip {
    All,
    Indent,
    Nothing,
}

impl<'s> Lexer<'s> {
    fn run(&mut self) -> Result<(), SyntaxError> {
        while let Some((start, tag)) = self.next_tag() {
            let begin = &self.source[start + 2..];
            let (strip, sign) = match begin.as_bytes().first() {
                Some(b'-') => (Strip::All, 1),
                Some(b'+') => (Strip::Nothing, 1),
                _ if tag == "{{" => (Strip::Nothing, 0),
                _ => (Strip::Indent, 0),
            };
            self.data(start, strip);
            self.advance(start + 2 + sign - self.position);
            match tag {
                "{#" => self.comment()?,
                "{{" => {
                    self.push(Token::PrintBegin);
                    self.inside(Token::PrintEnd)?;
                }
                _ if self.raw_begin() => self.raw()?,
                _ => {
                    self.push(Token::BlockBegin);
                    self.inside(Token::BlockEnd)?;
                }
            }
        }
        self.data(self.source.len(), Strip::Nothing);
        self.push(Token::End);
        Ok(())
    }

    fn rest(&self) -> &'s str {
        &self.source[self.position..]
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line, message: message.into() })
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((self.line, token));
    }

    fn next_tag(&self) -> Option<(usize, &'static str)> {
        let rest = self.rest();
        rest.match_indices('{').find_map(|(at, _)| {
            let tag = ["{%", "{{", "{#"].into_iter().find(|tag| rest[at..].starts_with(tag))?;
            Some((self.position + at, tag))
        })
    }

    fn advance(&mut self, bytes: usize) {
        let taken = &self.rest()[..bytes];
        self.line += u32::try_from(taken.matches('\n').count()).unwrap_or(u32::MAX);
        if bytes > 0 {
            self.line_starting = taken.ends_with('\n');
        }
        self.position += bytes;
    }

    /// Text up to `end`, stripped as what follows wants it.
    fn data(&mut self, end: usize, strip: Strip) {
        let text = &self.source[self.position..end];
        let kept = match strip {
            Strip::All => text.trim_end_matches(is_space),
            Strip::Nothing => text,
            Strip::Indent => {
                let start = text.rfind('\n').map_or(0, |at| at + 1);
                let indent = &text[start..];
                let whole_line = start > 0 || self.line_starting;
                if whole_line && !indent.is_empty() && indent.chars().all(is_space) { &text[..start] } else { text }
            }
        };
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_owned()));
        }
        self.advance(end - self.position);
    }

    /// Bytes of `[-+]?closing` at the beginning of `text` with the white space it takes along.
    fn closing(text: &str, closing: &str, trims: bool) -> Option<usize> {
        if let Some(behind) = text.strip_prefix('-').and_then(|text| text.strip_prefix(closing)) {
            return Some(text.len() - behind.trim_start_matches(is_space).len());
        }
        if trims && text.strip_prefix('+').is_some_and(|text| text.starts_with(closing)) {
            return Some(1 + closing.len());
        }
        let behind = text.strip_prefix(closing)?;
        Some(closing.len() + usize::from(trims && behind.starts_with('\n')))
    }

    fn comment(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let Some(at) = rest.find("#}") else { return self.fail("missing end of comment tag") };
        let sign = usize::from(rest[..at].ends_with(['-', '+']));
        let end = at - sign;
        let closing = Self::closing(&rest[end..], "#}", true).unwrap_or(sign + 2);
        self.advance(end + closing);
        Ok(())
    }

    /// Takes `raw -%}` where it is that.
    fn raw_begin(&mut self) -> bool {
        let rest = self.rest();
        let Some(behind) = rest.trim_start_matches(is_space).strip_prefix("raw") else { return false };
        let behind = behind.trim_start_matches(is_space);
        let Some(closing) = Self::closing(behind, "%}", false) else { return false };
        self.advance(rest.len() - behind.len() + closing);
        true
    }

    fn raw(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let inside = &rest[at + 2..];
            let (strip, sign) = match inside.as_bytes().first() {
                Some(b'-') => (Strip::All, 1),
                Some(b'+') => (Strip::Nothing, 1),
                _ => (Strip::Indent, 0),
            };
            let Some(behind) = inside[sign..].trim_start_matches(is_space).strip_prefix("endraw") else { continue };
            let behind = behind.trim_start_matches(is_space);
            let Some(closing) = Self::closing(behind, "%}", true) else { continue };
            let end = rest.len() - behind.len() + closing;
            let start = self.position;
            self.data(start + at, strip);
            self.advance(start + end - self.position);
            return Ok(());
        }
        self.fail("missing end of raw directive")
    }

    /// Tokens up to the end of a tag. An end counts only outside of brackets: `{{ {'a': {}} }}`.
    fn inside(&mut self, end: Token) -> Result<(), SyntaxError> {
        let (closing, trims) = if end == Token::BlockEnd { ("%}", true) } else { ("}}", false) };
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            if open.is_empty()
                && let Some(bytes) = Self::closing(rest, closing, trims)
            {
                self.push(end);
                self.advance(bytes);
                return Ok(());
            }
            let Some(first) = rest.chars().next() else { return self.fail("the template ends inside a tag") };
            if is_space(first) {
                self.advance(first.len_utf8());
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphabetic() {
                let name: String = rest.chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect();
                self.push(Token::Name(name.clone()));
                self.advance(name.len());
            } else if first == '"' || first == '\'' {
                self.text(first)?;
            } else {
                self.operator(&mut open)?;
            }
        }
    }

    fn operator(&mut self, open: &mut Vec<&'static str>) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) else {
            return self.fail(format!("unexpected character {:?}", rest.chars().next().unwrap_or_default()));
        };
        match operator {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" if open.pop() != Some(operator) => return self.fail(format!("unexpected '{operator}'")),
            _ => {}
        }
        self.push(Token::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let after_dot = matches!(self.tokens.last(), Some((_, Token::Operator("."))));
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_').len();
        let radix = match rest.get(..2) {
            Some("0x" | "0X") => Some(16),
            Some("0o" | "0O") => Some(8),
            Some("0b" | "0B") => Some(2),
            _ => None,
        };
        if let Some(radix) = radix {
            let body: String = rest[2..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            return match i64::from_str_radix(&body.replace('_', ""), radix) {
                Ok(value) => {
                    self.push(Token::Int(value));
                    self.advance(2 + body.len());
                    Ok(())
                }
                Err(_) => self.fail("not a number that fits 64 bits"),
            };
        }
        let mut end = digits(rest);
        let mut float = false;
        if !after_dot {
            let fraction = rest[end..].strip_prefix('.').map_or(0, digits);
            if fraction > 0 {
                (end, float) = (end + 1 + fraction, true);
            }
            if let Some(exponent) = rest[end..].strip_prefix(['e', 'E']) {
                let sign = usize::from(exponent.starts_with(['+', '-']));
                let size = digits(&exponent[sign..]);
                if size > 0 {
                    (end, float) = (end + 1 + sign + size, true);
                }
            }
        }
        let text = rest[..end].replace('_', "");
        let token = match float {
            true => text.parse().map(Token::Float).ok(),
            false => text.parse().map(Token::Int).ok(),
        };
        let Some(token) = token else { return self.fail("not a number that fits 64 bits") };
        self.push(token);
        self.advance(end);
        Ok(())
    }

    fn text(&mut self, quote: char) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let mut out = String::new();
        let mut characters = rest[1..].char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                _ if character == quote => {
                    self.push(Token::Text(out));
                    self.advance(at + 2);
                    return Ok(());
                }
                '\\' => {
                    let escape = &rest[1 + at + 1..];
                    let Some((text, bytes)) = unescape(escape) else {
                        return self.fail("an escape in a string is not valid");
                    };
                    out.push_str(&text);
                    while characters.as_str().len() > escape.len() - bytes {
                        characters.next();
                    }
                }
                _ => out.push(character),
            }
        }
        self.fail("a string has no end")
    }
}

/// What Python's `unicode-escape` makes of the text behind a backslash, and how many bytes of it.
fn unescape(escape: &str) -> Option<(String, usize)> {
    let simple = |text: &str| Some((text.to_owned(), 1));
    let coded = |start: usize, digits: &str, radix: u32| {
        let character = char::from_u32(u32::from_str_radix(digits, radix).ok()?)?;
        Some((character.to_string(), start + digits.len()))
    };
    let first = escape.chars().next()?;
    match first {
        'n' => simple("\n"),
        't' => simple("\t"),
        'r' => simple("\r"),
        'a' => simple("\u{7}"),
        'b' => simple("\u{8}"),
        'f' => simple("\u{c}"),
        'v' => simple("\u{b}"),
        '\n' => simple(""),
        '\\' | '\'' | '"' => simple(first.encode_utf8(&mut [0; 4])),
        'x' => coded(1, escape.get(1..3)?, 16),
        'u' => coded(1, escape.get(1..5)?, 16),
        'U' => coded(1, escape.get(1..9)?, 16),
        'N' => None,
        '0'..='7' => {
            let length = escape.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
            coded(0, &escape[..length], 8)
        }
        _ => Some((format!("\\{first}"), first.len_utf8())),
    }
}
