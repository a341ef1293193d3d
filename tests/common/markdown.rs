//! What the tests of the documents need to know of Markdown.

/// A block of code in a document.
#[derive(Debug, PartialEq)]
pub struct Block {
    /// Number of its first line, from 1.
    pub line: usize,
    /// What stands behind the fence; None for an indented block, which is a shell's.
    pub tag: Option<String>,
    pub lines: Vec<String>,
}

/// All blocks of code of a document, in order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut fence: Option<Block> = None;
    let mut indented: Option<Block> = None;
    let mut blank = true;
    for (number, line) in text.lines().enumerate() {
        let opens = line.trim_start().strip_prefix("```");
        if let Some(mut block) = fence.take() {
            match opens {
                Some(_) => found.push(block),
                None => {
                    block.lines.push(line.to_owned());
                    fence = Some(block);
                }
            }
        } else if let Some(tag) = opens {
            found.extend(indented.take());
            fence = Some(Block {
                line: number + 2,
                tag: Some(tag.trim().to_owned()),
                lines: Vec::new(),
            });
        } else if let Some(code) = line.strip_prefix("    ")
            && (blank || indented.is_some())
        {
            let block = indented.get_or_insert_with(|| Block {
                line: number + 1,
                tag: None,
                lines: Vec::new(),
            });
            block.lines.push(code.to_owned());
        } else if !line.is_empty() {
            found.extend(indented.take());
        }
        blank = line.is_empty();
    }
    assert!(fence.is_none(), "a fence is not closed");
    found.extend(indented);
    found
}

/// The commands of a shell block with the numbers of their lines; what a backslash continues is joined.
pub fn commands(block: &Block) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in block.lines.iter().enumerate() {
        let (text, continued) = match line.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line.as_str(), false),
        };
        match found.last_mut() {
            Some((_, command)) if goes_on => command.push_str(text),
            _ => found.push((block.line + number, text.to_owned())),
        }
        goes_on = continued;
    }
    found.retain(|(_, command)| {
        let command = command.trim();
        !command.is_empty() && !command.starts_with('#')
    });
    found
}

/// The targets of all links outside of code, with the numbers of their lines.
pub fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced || line.starts_with("    ") {
            continue;
        }
        // Every other piece between backticks is code.
        let plain: Vec<&str> = line.split('`').step_by(2).collect();
        for piece in plain.join("_").split("](").skip(1) {
            let target = piece.split(')').next().unwrap_or_default();
            found.push((number + 1, target.to_owned()));
        }
    }
    found
}

/// The anchors that the headings of a document have.
pub fn anchors(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if !fenced && line.starts_with('#') {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.push(kept.collect::<String>().replace(' ', "-"));
        }
    }
    found
}
