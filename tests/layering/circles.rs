//! Which file of `src/` needs which: by the items it names, wherever they are re-exported from. A method that is called
//! names nobody, so an `impl` may be cut into files; code of tests is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Item, ItemUse, UseTree, Visibility};

/// Where an item is, from the crate's root.
type Place = Vec<String>;

/// A file as far as its imports go.
#[derive(Default)]
struct Unit {
    /// Names that `use` brings in, and what each stands for.
    imports: HashMap<String, Place>,
    /// Of these, the ones that are handed on: a name that is only handed on is not needed here.
    handed_on: BTreeSet<String>,
    /// What `use x::*` brings in.
    globs: Vec<Place>,
    /// Paths in code, as written but for `self`, `super` and `crate`.
    named: BTreeSet<Place>,
}

/// What each file needs, of all files.
pub(crate) struct Needs(BTreeMap<Place, BTreeSet<Place>>);

impl Needs {
    /// Of sources, by their paths below `src/`.
    pub(crate) fn of<'a>(sources: impl Iterator<Item = (&'a Path, &'a str)>) -> Self {
        let mut units = BTreeMap::new();
        for (path, text) in sources {
            let place = place_of(path);
            if !place.iter().any(|part| ["tests", "testing", "fixtures", "lib", "main"].contains(&part.as_str())) {
                let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let mut reader = Reader { at: place.clone(), unit: Unit::default() };
                file.items.iter().for_each(|item| reader.visit_item(item));
                units.insert(place, reader.unit);
            }
        }
        Self(units.keys().map(|place| (place.clone(), needs(&units, place))).collect())
    }

    /// The groups of files that need each other, the largest first.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let reachable: BTreeMap<&Place, BTreeSet<&Place>> = self.0.keys().map(|from| (from, self.from(from))).collect();
        let mut circles = BTreeSet::new();
        for (place, reached) in &reachable {
            let circle: Vec<String> = reached
                .iter()
                .filter(|other| reachable[**other].contains(place))
                .map(|other| other.join("::"))
                .collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        let mut circles: Vec<_> = circles.into_iter().collect();
        circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
        circles
    }

    fn from(&self, start: &Place) -> BTreeSet<&Place> {
        let (mut reached, mut ahead) = (BTreeSet::new(), self.0[start].iter().collect::<Vec<_>>());
        while let Some(place) = ahead.pop() {
            if reached.insert(place) {
                ahead.extend(&self.0[place]);
            }
        }
        reached
    }
}

fn place_of(path: &Path) -> Place {
    let mut parts: Place = path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The files that `place` needs.
fn needs(units: &BTreeMap<Place, Unit>, place: &Place) -> BTreeSet<Place> {
    let unit = &units[place];
    let mut wanted: Vec<Place> = unit.globs.clone();
    for (name, target) in &unit.imports {
        if !unit.handed_on.contains(name) || unit.named.iter().any(|path| path[0] == *name) {
            wanted.push(target.clone());
        }
    }
    for path in &unit.named {
        let beside: Place = place.iter().chain(path).cloned().collect();
        match unit.imports.get(&path[0]) {
            Some(target) => wanted.push(target.iter().chain(&path[1..]).cloned().collect()),
            None if units.contains_key(&beside[..=place.len()]) => wanted.push(beside),
            None => wanted.push(path.clone()),
        }
    }
    wanted.iter().filter_map(|path| home(units, path, 0)).filter(|home| home != place).collect()
}

/// The file in which the item at a path is written. A module is no item.
fn home(units: &BTreeMap<Place, Unit>, path: &[String], depth: usize) -> Option<Place> {
    assert!(depth < 16, "{path:?} is imported in a circle");
    let length = (1..=path.len()).rev().find(|length| units.contains_key(&path[..*length]))?;
    let (file, rest) = path.split_at(length);
    let name = rest.first()?;
    match units[file].imports.get(name) {
        // A crate of that name.
        Some(target) if target.starts_with(&path[..=length]) => None,
        Some(target) => home(units, &[target, &rest[1..]].concat(), depth + 1),
        None => Some(file.to_vec()),
    }
}

/// Reads one file. `at` is where it stands, in a module written out in it too.
struct Reader {
    at: Place,
    unit: Unit,
}

impl Reader {
    fn absolute(&self, path: &[String]) -> Place {
        let supers = path.iter().take_while(|part| *part == "super").count();
        match path[0].as_str() {
            "crate" => path[1..].to_vec(),
            "self" => self.at.iter().chain(&path[1..]).cloned().collect(),
            "super" => self.at[..self.at.len() - supers].iter().chain(&path[supers..]).cloned().collect(),
            _ => path.to_vec(),
        }
    }

    fn name(&mut self, path: &[String]) {
        let path = self.absolute(path);
        if !path.is_empty() {
            self.unit.named.insert(path);
        }
    }

    fn take_in(&mut self, tree: &UseTree, before: &[String], handed_on: bool) {
        let with = |part: &syn::Ident| [before, &[part.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.take_in(&path.tree, &with(&path.ident), handed_on),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.take_in(tree, before, handed_on)),
            UseTree::Glob(_) => self.unit.globs.push([self.absolute(before), vec!["*".to_owned()]].concat()),
            UseTree::Name(name) if name.ident == "self" => self.import(&before[before.len() - 1], before, handed_on),
            UseTree::Name(name) => self.import(&name.ident.to_string(), &with(&name.ident), handed_on),
            UseTree::Rename(name) => self.import(&name.rename.to_string(), &with(&name.ident), handed_on),
        }
    }

    /// A path that begins with no keyword begins with a module of this file, or with a crate, which is no file of ours.
    fn import(&mut self, name: &str, path: &[String], handed_on: bool) {
        let is_absolute = ["crate", "self", "super"].contains(&path[0].as_str());
        let target = if is_absolute { self.absolute(path) } else { [self.at.as_slice(), path].concat() };
        self.unit.imports.insert(name.to_owned(), target);
        if handed_on {
            self.unit.handed_on.insert(name.to_owned());
        }
    }

    /// Paths in what a macro is given.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Place::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 => path.push(ident.to_string()),
                TokenTree::Ident(ident) => {
                    self.end(&mut path);
                    path.push(ident.to_string());
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    self.tokens(group.stream());
                }
                _ => self.end(&mut path),
            }
            colons = 0;
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Place) {
        if !path.is_empty() {
            self.name(path);
            path.clear();
        }
    }
}

fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let said = attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
        attribute.path().is_ident("test") || (attribute.path().is_ident("cfg") && said == "test")
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(module) if is_of_tests(&module.attrs) => {}
            Item::Mod(module) if module.content.is_some() => {
                self.at.push(module.ident.to_string());
                syn::visit::visit_item_mod(self, module);
                self.at.pop();
            }
            Item::Fn(function) if is_of_tests(&function.attrs) => {}
            Item::Impl(found) if is_of_tests(&found.attrs) => {}
            Item::Use(found) if is_of_tests(&found.attrs) => {}
            item => syn::visit::visit_item(self, item),
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.take_in(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Place = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.name(&parts);
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, found: &'ast syn::Macro) {
        self.visit_path(&found.path);
        self.tokens(found.tokens.clone());
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_of_tests(&function.attrs) {
            syn::visit::visit_impl_item_fn(self, function);
        }
    }
}
