//! Tokens to a syntax tree.

mod expressions;

use std::sync::Arc;

use super::ast::{Expr, For, Macro, Name, Statement, StatementKind, Target};
use super::error::SyntaxError;
use super::lexer::{self, Located, Token};

/// Most levels of tags and of expressions inside each other. A level takes a few stack frames.
const MAX_DEPTH: u32 = 80;

/// Most operators, attributes, calls and filters in one tag: chained, they are a tree as deep as they are many.
const MAX_OPERATORS: u32 = 120;

/// The template, and every text in it.
pub(super) fn parse(source: &str) -> Result<(Vec<Statement>, Vec<String>), SyntaxError> {
    let tokens = lexer::tokens(source)?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        operators: 0,
        literals: Vec::new(),
        names: Vec::new(),
        loops: 0,
        conditional: 0,
    };
    let body = parser.body(&[])?;
    Ok((body, parser.literals))
}

struct Parser {
    tokens: Vec<Located>,
    at: usize,
    depth: u32,
    /// In the current tag.
    operators: u32,
    literals: Vec<String>,
    /// Names read so far.
    names: Vec<Name>,
    /// Loops around the current tag, for `break` and `continue`.
    loops: u32,
    /// Branches around the current place: an unknown filter there fails where it is reached, as in Jinja.
    conditional: u32,
}

impl Parser {
    fn current(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, token)| token)
    }

    fn ahead(&self) -> &Token {
        self.tokens.get(self.at + 1).map_or(&Token::End, |(_, token)| token)
    }

    fn line(&self) -> u32 {
        let last = self.tokens.last();
        self.tokens.get(self.at).or(last).map_or(1, |(line, _)| *line)
    }

    fn next(&mut self) -> Token {
        let token = self.current().clone();
        self.at += 1;
        token
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line(), message: message.into() })
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T, SyntaxError> {
        let found = match self.current() {
            Token::Name(name) => format!("'{name}'"),
            Token::Operator(operator) => format!("'{operator}'"),
            Token::Text(_) => "a string".to_owned(),
            Token::Int(_) | Token::Float(_) => "a number".to_owned(),
            Token::BlockEnd | Token::PrintEnd => "the end of the tag".to_owned(),
            Token::Data(_) | Token::BlockBegin | Token::PrintBegin => "text".to_owned(),
            Token::End => "the end of the template".to_owned(),
        };
        self.fail(format!("expected {wanted}, found {found}"))
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.current(), Token::Operator(found) if *found == operator)
    }

    fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    fn expect_operator(&mut self, operator: &str) -> Result<(), SyntaxError> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(&format!("'{operator}'")) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.current(), Token::Name(found) if found == word)
    }

    fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn expect_word(&mut self, word: &str) -> Result<(), SyntaxError> {
        if self.skip_word(word) { Ok(()) } else { self.unexpected(&format!("'{word}'")) }
    }

    fn name(&mut self) -> Result<Name, SyntaxError> {
        let Token::Name(name) = self.current() else { return self.unexpected("a name") };
        let name = Arc::from(name.as_str());
        self.at += 1;
        Ok(name)
    }

    fn enter(&mut self) -> Result<(), SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { self.fail("the template is nested too deep") } else { Ok(()) }
    }

    fn operator(&mut self) -> Result<(), SyntaxError> {
        self.operators += 1;
        if self.operators > MAX_OPERATORS { self.fail("a tag has too many operators") } else { Ok(()) }
    }

    fn block_end(&mut self) -> Result<(), SyntaxError> {
        match self.current() {
            Token::BlockEnd => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("the end of the tag"),
        }
    }

    /// Statements up to a tag that begins with one of `ends`, whose name is then current; to the end of the template
    /// where there are none.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Statement>, SyntaxError> {
        self.enter()?;
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.operators = 0;
            match self.next() {
                Token::Data(text) => {
                    self.literals.push(text.clone());
                    body.push(Statement { line, kind: StatementKind::Data(text) });
                }
                Token::PrintBegin => {
                    let value = self.tuple(true, false)?;
                    let Token::PrintEnd = self.next() else {
                        self.at -= 1;
                        return self.unexpected("the end of the tag");
                    };
                    body.push(Statement { line, kind: StatementKind::Print(value) });
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_word(end)) {
                        self.depth -= 1;
                        return Ok(body);
                    }
                    let kind = self.statement()?;
                    body.push(Statement { line, kind });
                    self.block_end()?;
                }
                Token::End if ends.is_empty() => {
                    self.depth -= 1;
                    return Ok(body);
                }
                _ => return self.fail(format!("the template ends without '{}'", ends.join("' or '"))),
            }
        }
    }

    /// The inside of a tag, up to one of `ends`; its name is taken.
    fn block(&mut self, ends: &[&str]) -> Result<(Vec<Statement>, String), SyntaxError> {
        self.skip_operator(":");
        self.block_end()?;
        let body = self.body(ends)?;
        match self.next() {
            Token::Name(end) => Ok((body, end)),
            _ => self.fail("expected the name of a tag"),
        }
    }

    /// A statement without the end of its tag.
    fn statement(&mut self) -> Result<StatementKind, SyntaxError> {
        let tag = self.name()?;
        match &*tag {
            "if" => self.parse_if(),
            "for" => self.parse_for(),
            "set" => self.parse_set(),
            "with" => self.parse_with(),
            "macro" => {
                let name = self.name()?;
                Ok(StatementKind::Macro(Arc::new(self.parse_macro(name)?)))
            }
            "call" => self.parse_call_block(),
            "filter" => {
                let filter = self.filter_chain(None, true)?;
                let (body, _) = self.block(&["endfilter"])?;
                Ok(StatementKind::Filter(filter, body))
            }
            "generation" => Ok(StatementKind::Scope(self.block(&["endgeneration"])?.0)),
            "block" => {
                let name = self.name()?;
                self.skip_word("scoped");
                let (body, _) = self.block(&["endblock"])?;
                self.skip_word(&name);
                Ok(StatementKind::Scope(body))
            }
            "print" => Ok(StatementKind::Print(self.tuple(true, false)?)),
            "break" | "continue" if self.loops == 0 => self.fail(format!("'{tag}' outside of a loop")),
            "break" => Ok(StatementKind::Break),
            "continue" => Ok(StatementKind::Continue),
            "include" | "import" | "from" | "extends" => {
                self.fail(format!("the tag '{tag}' needs another template, and a chat template stands alone"))
            }
            _ => self.fail(format!("unknown tag '{tag}'")),
        }
    }

    fn parse_if(&mut self) -> Result<StatementKind, SyntaxError> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, false)?;
            self.conditional += 1;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            self.conditional -= 1;
            branches.push((condition, body));
            match end.as_str() {
                "elif" => {}
                "else" => {
                    self.conditional += 1;
                    let (otherwise, _) = self.block(&["endif"])?;
                    self.conditional -= 1;
                    return Ok(StatementKind::If(branches, otherwise));
                }
                _ => return Ok(StatementKind::If(branches, Vec::new())),
            }
        }
    }

    fn parse_for(&mut self) -> Result<StatementKind, SyntaxError> {
        let target = self.target(Some("in"), false)?;
        self.expect_word("in")?;
        let iterable = self.tuple(false, false)?;
        let condition = if self.skip_word("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_word("recursive");
        self.loops += 1;
        let (body, end) = self.block(&["else", "endfor"])?;
        self.loops -= 1;
        let otherwise = if end == "else" { self.block(&["endfor"])?.0 } else { Vec::new() };
        Ok(StatementKind::For(Box::new(For { target, iterable, condition, recursive, body, otherwise })))
    }

    fn parse_set(&mut self) -> Result<StatementKind, SyntaxError> {
        let target = self.target(None, true)?;
        if self.skip_operator("=") {
            return Ok(StatementKind::Set(target, self.tuple(true, false)?));
        }
        let filter = if self.is_operator("|") { Some(self.filter_chain(None, false)?) } else { None };
        let (body, _) = self.block(&["endset"])?;
        Ok(StatementKind::SetBlock(target, filter, body))
    }

    fn parse_with(&mut self) -> Result<StatementKind, SyntaxError> {
        let mut variables = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !variables.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.single_target(false)?;
            self.expect_operator("=")?;
            variables.push((target, self.expression()?));
        }
        let (body, _) = self.block(&["endwith"])?;
        Ok(StatementKind::With(variables, body))
    }

    fn parse_macro(&mut self, name: Name) -> Result<Macro, SyntaxError> {
        if !self.is_operator("(") {
            return self.fail("expected the parameters of a macro in parentheses");
        }
        let parameters = self.signature()?;
        self.macro_of(name, parameters, "endmacro")
    }

    /// `(a, b=1)`, or nothing.
    fn signature(&mut self) -> Result<Vec<(Name, Option<Expr>)>, SyntaxError> {
        let mut parameters: Vec<(Name, Option<_>)> = Vec::new();
        if self.skip_operator("(") {
            while !self.skip_operator(")") {
                if !parameters.is_empty() {
                    self.expect_operator(",")?;
                }
                let parameter = self.name()?;
                let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
                if default.is_none() && parameters.iter().any(|(_, default)| default.is_some()) {
                    return self.fail("non-default argument follows default argument");
                }
                parameters.push((parameter, default));
            }
        }
        Ok(parameters)
    }

    /// A macro whose signature has been read: its body, up to the tag that ends it.
    fn macro_of(&mut self, name: Name, parameters: Vec<(Name, Option<Expr>)>, end: &str) -> Result<Macro, SyntaxError> {
        let (loops, names) = (std::mem::take(&mut self.loops), self.names.len());
        let (body, _) = self.block(&[end])?;
        self.loops = loops;
        let takes = |what: &str| self.names[names..].iter().any(|name| &**name == what);
        Ok(Macro { name, takes_positional: takes("varargs"), takes_named: takes("kwargs"), parameters, body })
    }

    fn parse_call_block(&mut self) -> Result<StatementKind, SyntaxError> {
        // The parameters of the caller stand before the call.
        let parameters = self.signature()?;
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.fail("expected a call");
        }
        let caller = self.macro_of(Arc::from("caller"), parameters, "endcall")?;
        Ok(StatementKind::Call(call, Arc::new(caller)))
    }

    /// `a`, `a, b`, `(a, b)`, and with `attributes` also `namespace.a`.
    fn target(&mut self, end: Option<&str>, attributes: bool) -> Result<Target, SyntaxError> {
        let first = self.single_target(attributes)?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut targets = vec![first];
        while self.skip_operator(",") {
            let ended = end.is_some_and(|end| self.is_word(end)) || self.is_operator("=");
            if ended || self.is_operator(")") || *self.current() == Token::BlockEnd {
                break;
            }
            targets.push(self.single_target(attributes)?);
        }
        Ok(Target::Tuple(targets))
    }

    fn single_target(&mut self, attributes: bool) -> Result<Target, SyntaxError> {
        if self.skip_operator("(") {
            self.enter()?;
            let target = self.target(None, attributes)?;
            self.expect_operator(")")?;
            self.depth -= 1;
            return Ok(target);
        }
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(format!("can't assign to '{name}'"));
        }
        if attributes && self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(name))
    }
}
