//! Lists of options as mount(8) and fstab(5) have them: `name,name=value,...`.

/// Splits the value of one `-o` at its commas. A comma is part of an option after a backslash, or between
/// double quotes, as libmount has it; `\\` and `\"` stand for the characters themselves. Empty options
/// are left out. Fails if a quote is not closed.
pub fn split(list: &str) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    let (mut option, mut quoted) = (String::new(), false);
    let mut chars = list.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next_if(|next| matches!(next, ',' | '\\' | '"')) {
                Some(escaped) => option.push(escaped),
                None => option.push('\\'),
            },
            '"' => quoted = !quoted,
            ',' if !quoted => options.push(std::mem::take(&mut option)),
            _ => option.push(char),
        }
    }
    if quoted {
        return Err(format!("the quote in {list} is not closed"));
    }
    options.push(option);
    options.retain_mut(|option| {
        *option = option.trim().to_owned();
        !option.is_empty()
    });
    Ok(options)
}

/// All options of any number of `-o` arguments, in order.
pub fn split_all<S: AsRef<str>>(lists: &[S]) -> Result<Vec<String>, String> {
    let parts: Result<Vec<_>, _> = lists.iter().map(|list| split(list.as_ref())).collect();
    Ok(parts?.into_iter().flatten().collect())
}

/// The list that [`split`] takes apart into `options` again.
pub fn join<S: AsRef<str>>(options: &[S]) -> String {
    let escape = |option: &S| {
        let escaped = option.as_ref().replace('\\', "\\\\");
        escaped.replace(',', "\\,").replace('"', "\\\"")
    };
    options.iter().map(escape).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commas_in_values_are_escaped_or_quoted() {
        let list = r#"ro,log=/a\,b,model="/c,d", x-what=\\,,cache=1M\x"#;
        let expected = ["ro", "log=/a,b", "model=/c,d", r"x-what=\", r"cache=1M\x"];
        assert_eq!(split(list).unwrap(), expected);
        assert!(split("").unwrap().is_empty());
        assert!(split("log=\"/a,ro").unwrap_err().contains("not closed"));
    }

    proptest! {
        #[test]
        fn what_was_joined_comes_apart_the_same(options in prop::collection::vec(r#"[a-z=,\\"]{1,8}"#, 0..5)) {
            prop_assert_eq!(split(&join(&options)).unwrap(), options);
        }
    }
}
