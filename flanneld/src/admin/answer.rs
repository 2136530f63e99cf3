//! What a verb answers: text for people and one JSON value for programs, made from the same facts.

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use super::table::Table;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// Text and tables for people.
    #[value(alias = "table")]
    Text,
    /// JSON for programs.
    Json,
}

/// The answer of one verb.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    blocks: Vec<Block>,
    json: Value,
    /// The text is JSON for programs, too.
    is_whole: bool,
}

#[derive(Debug, Clone)]
enum Block {
    Text(String),
    Table(Table),
}

impl Answer {
    /// An answer for programs; what people read is added.
    pub(super) fn new(json: impl Serialize) -> Self {
        // Texts, numbers and lists: nothing in them that JSON has no form for.
        Self { blocks: Vec::new(), is_whole: false, json: serde_json::to_value(json).unwrap_or_default() }
    }

    /// The answer is these lines in either form: they are JSON already.
    pub(super) fn lines(mut self, lines: String) -> Self {
        self.blocks.push(Block::Text(lines));
        self.is_whole = true;
        self
    }

    /// Adds lines; the text ends with a line end.
    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.blocks.push(Block::Text(text.into()));
        self
    }

    pub(super) fn table(mut self, table: Table) -> Self {
        self.blocks.push(Block::Table(table));
        self
    }

    /// As it is printed: tables fit so many columns where a width is given.
    pub(super) fn print(&self, form: Form, width: Option<usize>) -> String {
        if form == Form::Json && !self.is_whole {
            return format!("{:#}\n", self.json);
        }
        let block = |block: &Block| match block {
            Block::Text(text) => text.clone(),
            Block::Table(table) => table.lines(width),
        };
        self.blocks.iter().map(block).collect()
    }
}

/// Text of others, as a terminal may show it: records of the store are whatever somebody wrote.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}
