//! Statements, and what a rendering keeps.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use super::ast::{Expr, For, Macro, Name, Statement, StatementKind, Target};
use super::budget::{Budget, Limits};
use super::compare;
use super::error::{RenderError, failed};
use super::value::{Object, Value};

/// Variables of a body, and what lies outside of it.
#[derive(Debug)]
pub(super) struct Scope {
    variables: RefCell<Vec<(Name, Value)>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    fn new(outer: Option<&Rc<Self>>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::new(Vec::new()), outer: outer.cloned() })
    }

    pub(super) fn inside(outer: &Rc<Self>) -> Rc<Self> {
        Self::new(Some(outer))
    }

    pub(super) fn set(&self, name: &Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(found, _)| found == name) {
            Some((_, old)) => *old = value,
            None => variables.push((Arc::clone(name), value)),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(current) = scope {
            let variables = current.variables.borrow();
            if let Some((_, value)) = variables.iter().find(|(found, _)| &**found == name) {
                return Some(value.clone());
            }
            scope = current.outer.as_deref();
        }
        None
    }
}

/// A macro and where it was made. Its names are those of that place at the time of the call.
#[derive(Clone)]
pub(super) struct Closure<'t> {
    pub(super) declaration: &'t Macro,
    pub(super) scope: Rc<Scope>,
}

/// What `loop` says.
pub(super) struct LoopState<'t> {
    pub(super) items: Rc<Vec<Value>>,
    pub(super) index: usize,
    pub(super) depth: usize,
    pub(super) changed: Option<Vec<Value>>,
    /// Where `loop(…)` runs the body again.
    pub(super) recursive: Option<(&'t For, Rc<Scope>)>,
}

/// Whether to go on behind a statement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// One rendering. Things with a state are kept here and named by their place, so that they cannot hold each other.
pub(super) struct Machine<'t> {
    pub(super) budget: Budget,
    pub(super) now: SystemTime,
    pub(super) namespaces: Vec<Vec<(Value, Value)>>,
    pub(super) closures: Vec<Closure<'t>>,
    pub(super) loops: Vec<LoopState<'t>>,
    pub(super) generators: Vec<VecDeque<Value>>,
    /// Items and position of every cycler.
    pub(super) cyclers: Vec<(Vec<Value>, usize)>,
    /// Separator of every joiner, and whether it was asked before.
    pub(super) joiners: Vec<(Arc<str>, bool)>,
}

impl<'t> Machine<'t> {
    pub(super) fn new(now: SystemTime, limits: Limits) -> Self {
        Self {
            budget: Budget::new(limits),
            now,
            namespaces: Vec::new(),
            closures: Vec::new(),
            loops: Vec::new(),
            generators: Vec::new(),
            cyclers: Vec::new(),
            joiners: Vec::new(),
        }
    }

    pub(super) fn render(
        mut self,
        body: &'t [Statement],
        variables: Vec<(String, Value)>,
    ) -> Result<String, RenderError> {
        let scope = Scope::new(None);
        for (name, value) in variables {
            scope.set(&Arc::from(name), value);
        }
        let mut out = String::new();
        self.body(body, &scope, &mut out)?;
        Ok(out)
    }

    pub(super) fn write(&mut self, text: &str, out: &mut String) -> Result<(), RenderError> {
        self.budget.bytes(text.len())?;
        if out.len() + text.len() > self.budget.output {
            return Err(RenderError::Limit { limit: "the size of the output" });
        }
        out.push_str(text);
        Ok(())
    }

    pub(super) fn body(
        &mut self,
        body: &'t [Statement],
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<Flow, RenderError> {
        for statement in body {
            self.budget.enter()?;
            let flow = self.statement(statement, scope, out).map_err(|error| match error {
                RenderError::Failed { line: 0, message } => RenderError::Failed { line: statement.line, message },
                other => other,
            })?;
            self.budget.leave();
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// A body's text by itself, in a scope of its own.
    pub(super) fn captured(&mut self, body: &'t [Statement], scope: &Rc<Scope>) -> Result<Value, RenderError> {
        let mut out = String::new();
        self.body(body, &Scope::inside(scope), &mut out)?;
        Ok(Value::Text(Arc::from(out)))
    }

    fn statement(
        &mut self,
        statement: &'t Statement,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<Flow, RenderError> {
        match &statement.kind {
            StatementKind::Data(text) => self.write(text, out)?,
            StatementKind::Print(value) => {
                let value = self.evaluate(value, scope)?;
                self.print(&value, out)?;
            }
            StatementKind::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.evaluate(condition, scope)?.is_true() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            StatementKind::For(each) => {
                let items = self.evaluate(&each.iterable, scope)?;
                self.run_loop(each, items, scope, 0, out)?;
            }
            StatementKind::Set(target, value) => {
                let value = self.evaluate(value, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::SetBlock(target, filter, body) => {
                let text = self.captured(body, scope)?;
                let value = self.filtered(filter.as_ref(), text, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::With(variables, body) => {
                let inner = Scope::inside(scope);
                for (target, value) in variables {
                    let value = self.evaluate(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner, out);
            }
            StatementKind::Macro(declaration) => {
                let value = self.closure(declaration, scope);
                scope.set(&declaration.name, value);
            }
            StatementKind::Call(call, caller) => {
                let caller = self.closure(caller, scope);
                let value = self.call_with_caller(call, caller, scope)?;
                self.print(&value, out)?;
            }
            StatementKind::Filter(filter, body) => {
                let text = self.captured(body, scope)?;
                let value = self.filtered(Some(filter), text, scope)?;
                self.print(&value, out)?;
            }
            StatementKind::Scope(body) => return self.body(body, &Scope::inside(scope), out),
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn print(&mut self, value: &Value, out: &mut String) -> Result<(), RenderError> {
        match value {
            Value::Text(text) | Value::Markup(text) => self.write(text, out),
            _ => {
                let text = value.to_text(&mut self.budget)?;
                self.write(&text, out)
            }
        }
    }

    fn filtered(&mut self, filter: Option<&'t Expr>, text: Value, scope: &Rc<Scope>) -> Result<Value, RenderError> {
        match filter {
            Some(filter) => self.filter_with_operand(filter, text, scope),
            None => Ok(text),
        }
    }

    fn closure(&mut self, declaration: &'t Macro, scope: &Rc<Scope>) -> Value {
        self.closures.push(Closure { declaration, scope: Rc::clone(scope) });
        Value::Object(Object::Macro, self.closures.len() - 1)
    }

    pub(super) fn run_loop(
        &mut self,
        each: &'t For,
        items: Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), RenderError> {
        let mut items = self.iterate(&items)?;
        if let Some(condition) = &each.condition {
            let mut kept = Vec::new();
            for item in items {
                let inner = Scope::inside(scope);
                self.assign(&each.target, item.clone(), &inner)?;
                if self.evaluate(condition, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            self.body(&each.otherwise, &Scope::inside(scope), out)?;
            return Ok(());
        }
        let items = Rc::new(items);
        let place = self.loops.len();
        let recursive = each.recursive.then(|| (each, Rc::clone(scope)));
        self.loops.push(LoopState { items: Rc::clone(&items), index: 0, depth, changed: None, recursive });
        let name: Name = Arc::from("loop");
        for (index, item) in items.iter().enumerate() {
            self.budget.step()?;
            if let Some(state) = self.loops.get_mut(place) {
                state.index = index;
            }
            let inner = Scope::inside(scope);
            inner.set(&name, Value::Object(Object::Loop, place));
            self.assign(&each.target, item.clone(), &inner)?;
            if self.body(&each.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<(), RenderError> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Tuple(targets) => {
                let values = self.iterate(&value)?;
                if values.len() != targets.len() {
                    let (found, wanted) = (values.len(), targets.len());
                    return failed(format!("cannot unpack {found} values into {wanted} names"));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
            Target::Attribute(name, attribute) => {
                let Some(Value::Object(Object::Namespace, place)) = scope.get(name) else {
                    return failed("cannot assign attribute on non-namespace object");
                };
                if attribute.starts_with('_') {
                    return failed(format!("a namespace has no attribute {attribute:?}: it begins with an underscore"));
                }
                let key = Value::Text(Arc::clone(attribute));
                if let Some(entries) = self.namespaces.get_mut(place) {
                    compare::insert(entries, key, value, &mut self.budget)?;
                }
            }
        }
        Ok(())
    }
}
