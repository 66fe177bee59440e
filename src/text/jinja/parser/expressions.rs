//! Expressions, loosest binding first.

use std::sync::Arc;

use super::super::ast::{Arguments, Arithmetic, Comparison, Expr, Literal, Name};
use super::super::error::SyntaxError;
use super::super::lexer::Token;
use super::super::{checks, filters, methods};
use super::Parser;

const OR: u8 = 0;
const AND: u8 = 1;
/// `not` stands before its operand, and is none of [`INFIX`].
const NOT: u8 = 2;
const COMPARISON: u8 = 3;
const SUM: u8 = 4;
const CONCAT: u8 = 5;
const PRODUCT: u8 = 6;
const POWER: u8 = 7;

const NOT_IN: &str = "not in";

/// An operator between two operands.
struct Infix {
    written: &'static str,
    /// How tightly it binds. Of two of one level the left one binds first, powers included, as in Jinja and unlike Python.
    level: u8,
    joins: Joins,
}

#[derive(Clone, Copy)]
enum Joins {
    Or,
    And,
    /// With its neighbours, as in `a < b < c`.
    Comparison(Comparison),
    Arithmetic(Arithmetic),
    /// With its neighbours.
    Concat,
}

const fn infix(written: &'static str, level: u8, joins: Joins) -> Infix {
    Infix { written, level, joins }
}

static INFIX: [Infix; 18] = [
    infix("or", OR, Joins::Or),
    infix("and", AND, Joins::And),
    infix("==", COMPARISON, Joins::Comparison(Comparison::Eq)),
    infix("!=", COMPARISON, Joins::Comparison(Comparison::Ne)),
    infix("<", COMPARISON, Joins::Comparison(Comparison::Lt)),
    infix("<=", COMPARISON, Joins::Comparison(Comparison::Le)),
    infix(">", COMPARISON, Joins::Comparison(Comparison::Gt)),
    infix(">=", COMPARISON, Joins::Comparison(Comparison::Ge)),
    infix("in", COMPARISON, Joins::Comparison(Comparison::In)),
    infix(NOT_IN, COMPARISON, Joins::Comparison(Comparison::NotIn)),
    infix("+", SUM, Joins::Arithmetic(Arithmetic::Add)),
    infix("-", SUM, Joins::Arithmetic(Arithmetic::Sub)),
    infix("~", CONCAT, Joins::Concat),
    infix("*", PRODUCT, Joins::Arithmetic(Arithmetic::Mul)),
    infix("/", PRODUCT, Joins::Arithmetic(Arithmetic::Div)),
    infix("//", PRODUCT, Joins::Arithmetic(Arithmetic::FloorDiv)),
    infix("%", PRODUCT, Joins::Arithmetic(Arithmetic::Mod)),
    infix("**", POWER, Joins::Arithmetic(Arithmetic::Pow)),
];

impl Parser {
    /// One or several expressions with commas; several are a tuple.
    pub(super) fn tuple(&mut self, conditionals: bool, parenthesized: bool) -> Result<Expr, SyntaxError> {
        let mut elements = Vec::new();
        let mut several = false;
        loop {
            let ended = matches!(self.current(), Token::PrintEnd | Token::BlockEnd) || self.is_operator(")");
            if ended || self.is_word("recursive") {
                break;
            }
            elements.push(if conditionals { self.expression()? } else { self.without_conditional()? });
            if !self.skip_operator(",") {
                break;
            }
            several = true;
        }
        match elements.pop() {
            Some(only) if !several => Ok(only),
            Some(last) => {
                elements.push(last);
                Ok(Expr::Tuple(elements))
            }
            None if parenthesized => Ok(Expr::Tuple(elements)),
            None => self.unexpected("an expression"),
        }
    }

    pub(super) fn expression(&mut self) -> Result<Expr, SyntaxError> {
        self.enter()?;
        let mut value = self.operators(OR)?;
        while self.skip_word("if") {
            self.operator()?;
            let condition = self.operators(OR)?;
            self.conditional += 1;
            let otherwise = if self.skip_word("else") { Some(Box::new(self.expression()?)) } else { None };
            self.conditional -= 1;
            value = Expr::Conditional(Box::new(condition), Box::new(value), otherwise);
        }
        self.depth -= 1;
        Ok(value)
    }

    fn without_conditional(&mut self) -> Result<Expr, SyntaxError> {
        self.enter()?;
        let value = self.operators(OR)?;
        self.depth -= 1;
        Ok(value)
    }

    /// Operands and the operators between them that bind no looser than `least`.
    fn operators(&mut self, least: u8) -> Result<Expr, SyntaxError> {
        let mut left = if least <= NOT && self.skip_word("not") {
            self.enter()?;
            let operand = self.operators(NOT)?;
            self.depth -= 1;
            Expr::Not(Box::new(operand))
        } else {
            self.unary(true)?
        };
        while let Some(infix) = self.infix(least) {
            left = self.infixed(left, infix)?;
        }
        Ok(left)
    }

    /// The operator at the current place, if it binds no looser than `least`.
    fn infix(&self, least: u8) -> Option<&'static Infix> {
        let written = match self.current() {
            Token::Operator(operator) => operator,
            Token::Name(name) if name == "not" && matches!(self.ahead(), Token::Name(next) if next == "in") => NOT_IN,
            Token::Name(name) => name.as_str(),
            _ => return None,
        };
        INFIX.iter().find(|infix| infix.written == written && infix.level >= least)
    }

    /// `left` with the operator at the current place, and with those of its level that follow where they are one chain.
    fn infixed(&mut self, left: Expr, infix: &'static Infix) -> Result<Expr, SyntaxError> {
        let left = Box::new(left);
        Ok(match infix.joins {
            Joins::Or => Expr::Or(left, self.right(infix)?),
            Joins::And => Expr::And(left, self.right(infix)?),
            Joins::Arithmetic(operator) => Expr::Arithmetic(operator, left, self.right(infix)?),
            Joins::Comparison(_) => {
                let mut operands = Vec::new();
                while let Some(infix @ Infix { joins: Joins::Comparison(comparison), .. }) = self.infix(infix.level) {
                    operands.push((*comparison, self.operand(infix)?));
                }
                Expr::Compare(left, operands)
            }
            Joins::Concat => {
                let mut parts = vec![*left];
                while let Some(infix @ Infix { joins: Joins::Concat, .. }) = self.infix(infix.level) {
                    parts.push(self.operand(infix)?);
                }
                Expr::Concat(parts)
            }
        })
    }

    /// What is right of an operator that makes the tree deeper.
    fn right(&mut self, infix: &Infix) -> Result<Box<Expr>, SyntaxError> {
        self.operator()?;
        self.operand(infix).map(Box::new)
    }

    /// What is right of the operator at the current place.
    fn operand(&mut self, infix: &Infix) -> Result<Expr, SyntaxError> {
        self.at += infix.written.split(' ').count();
        self.operators(infix.level + 1)
    }

    fn unary(&mut self, filters: bool) -> Result<Expr, SyntaxError> {
        self.enter()?;
        let mut value = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.unary(false)?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.unary(false)?))
        } else {
            self.primary()?
        };
        value = self.postfix(value)?;
        loop {
            if !filters {
                break;
            } else if self.is_operator("|") {
                value = self.filter_chain(Some(value), false)?;
            } else if self.is_word("is") {
                value = self.test(value)?;
            } else if self.is_operator("(") {
                self.operator()?;
                value = self.call(value)?;
            } else {
                break;
            }
        }
        self.depth -= 1;
        Ok(value)
    }

    fn primary(&mut self) -> Result<Expr, SyntaxError> {
        let literal = match self.current().clone() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Literal::Bool(true),
                "false" | "False" => Literal::Bool(false),
                "none" | "None" => Literal::None,
                _ => {
                    let name = self.name()?;
                    self.names.push(Arc::clone(&name));
                    return Ok(Expr::Name(name));
                }
            },
            Token::Text(mut text) => {
                while let Token::Text(more) = self.ahead() {
                    text.push_str(more);
                    self.at += 1;
                }
                self.literals.push(text.clone());
                Literal::Text(Arc::from(text))
            }
            Token::Int(value) => Literal::Int(value),
            Token::Float(value) => Literal::Float(value),
            Token::Operator("(") => {
                self.at += 1;
                let value = self.tuple(true, true)?;
                self.expect_operator(")")?;
                return Ok(value);
            }
            Token::Operator("[") => return self.list(),
            Token::Operator("{") => return self.dict(),
            _ => return self.unexpected("an expression"),
        };
        self.at += 1;
        Ok(Expr::Literal(literal))
    }

    fn list(&mut self) -> Result<Expr, SyntaxError> {
        self.between("[", "]", Self::expression).map(Expr::List)
    }

    fn dict(&mut self) -> Result<Expr, SyntaxError> {
        let entry = |parser: &mut Self| {
            let key = parser.expression()?;
            parser.expect_operator(":")?;
            Ok((key, parser.expression()?))
        };
        self.between("{", "}", entry).map(Expr::Dict)
    }

    /// What stands between brackets, with commas between and perhaps one behind.
    fn between<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<Vec<T>, SyntaxError> {
        self.expect_operator(open)?;
        let mut items = Vec::new();
        while !self.skip_operator(close) {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr, SyntaxError> {
        loop {
            self.operator()?;
            value = if self.skip_operator(".") {
                match self.current().clone() {
                    Token::Int(index) => {
                        self.at += 1;
                        Expr::Item(Box::new(value), Box::new(Expr::Literal(Literal::Int(index))))
                    }
                    _ => Expr::Attribute(Box::new(value), self.name()?),
                }
            } else if self.skip_operator("[") {
                self.subscript(value)?
            } else if self.is_operator("(") {
                self.call(value)?
            } else {
                self.operators -= 1;
                return Ok(value);
            };
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr, SyntaxError> {
        let at_end = |parser: &Self| parser.is_operator(":") || parser.is_operator("]");
        let start = if self.is_operator(":") { None } else { Some(self.expression()?) };
        if !self.is_operator(":") {
            self.expect_operator("]")?;
            let Some(index) = start else { return self.unexpected("an index") };
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        self.expect_operator(":")?;
        let stop = if at_end(self) { None } else { Some(self.expression()?) };
        let stepped = self.skip_operator(":");
        let step = if stepped && !at_end(self) { Some(self.expression()?) } else { None };
        self.expect_operator("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new([start, stop, step])))
    }

    fn call(&mut self, value: Expr) -> Result<Expr, SyntaxError> {
        if let Expr::Attribute(_, name) = &value
            && methods::is_unsupported(name)
        {
            return self.fail(format!("the method '{name}' is not supported"));
        }
        let arguments = self.arguments()?;
        Ok(Expr::Call(Box::new(value), Box::new(arguments)))
    }

    fn arguments(&mut self) -> Result<Arguments, SyntaxError> {
        let mut arguments = Arguments::default();
        self.between("(", ")", |parser| parser.argument(&mut arguments))?;
        Ok(arguments)
    }

    fn argument(&mut self, arguments: &mut Arguments) -> Result<(), SyntaxError> {
        let (more, named) = (arguments.more_positional.is_some(), arguments.more_named.is_some());
        if self.skip_operator("*") {
            if more || named {
                return self.fail("invalid syntax for function call expression");
            }
            arguments.more_positional = Some(self.expression()?);
        } else if self.skip_operator("**") {
            if named {
                return self.fail("invalid syntax for function call expression");
            }
            arguments.more_named = Some(self.expression()?);
        } else if matches!(self.current(), Token::Name(_)) && matches!(self.ahead(), Token::Operator("=")) {
            let name: Name = self.name()?;
            self.at += 1;
            arguments.named.push((name, self.expression()?));
        } else if more || named || !arguments.named.is_empty() {
            return self.fail("positional argument follows keyword argument");
        } else {
            arguments.positional.push(self.expression()?);
        }
        Ok(())
    }

    /// `| filter | filter(…)`; `inline` where the first has no bar before it.
    pub(super) fn filter_chain(&mut self, mut value: Option<Expr>, mut inline: bool) -> Result<Expr, SyntaxError> {
        while inline || self.is_operator("|") {
            self.operator()?;
            if !inline {
                self.at += 1;
            }
            inline = false;
            let name = self.name()?;
            filters::known(&name).or_else(|unknown| self.unknown(unknown, filters::exists(&name)))?;
            let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
            value = Some(Expr::Filter(value.map(Box::new), name, Box::new(arguments)));
        }
        match value {
            Some(value) => Ok(value),
            None => self.unexpected("a filter"),
        }
    }

    fn test(&mut self, value: Expr) -> Result<Expr, SyntaxError> {
        self.expect_word("is")?;
        let negated = self.skip_word("not");
        let name = self.name()?;
        checks::known(&name).or_else(|unknown| self.unknown(unknown, false))?;
        let arguments = match self.current() {
            Token::Operator("(") => self.arguments()?,
            Token::Name(word) if matches!(word.as_str(), "else" | "or" | "and") => Arguments::default(),
            Token::Name(word) if word == "is" => return self.fail("tests cannot be chained"),
            // These end the expression where a name would be its argument.
            Token::Name(word) if matches!(word.as_str(), "if" | "in" | "not" | "recursive") && !self.takes(&name) => {
                Arguments::default()
            }
            Token::Name(_) | Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Operator("[" | "{") => {
                let argument = self.primary()?;
                let argument = self.postfix(argument)?;
                Arguments { positional: vec![argument], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        let test = Expr::Test(Box::new(value), name, Box::new(arguments));
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    fn takes(&self, test: &str) -> bool {
        checks::takes_argument(test)
    }

    /// A name that is not known fails at once, unless a branch stands around it that may never be taken. One that
    /// Jinja knows and this implementation does not always fails here.
    fn unknown(&self, what: String, exists: bool) -> Result<(), SyntaxError> {
        if self.conditional > 0 && !exists { Ok(()) } else { self.fail(what) }
    }
}
