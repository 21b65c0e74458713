"""Markdown with every construct that the chat page supports."""

EVERYTHING = """\
# First *level*

A paragraph with **strong**, *em*, ***both***, ~~struck~~, `code with <b> & *stars*`,
a second line, snake_case_word, 5 * 3 * 2, and a hard\\
break.

## Second ##

- one
- two with `code`
  - nested
  - nested again

    a second paragraph
- three

3. three
4. four
   - inner

- [x] done
- [ ] to do

> A quote
with a lazy continuation line
>
> - with a list

| Left | Middle | Right |
|:-----|:------:|------:|
| a | `b` | 1 |
| pipe \\| here | **c** |

```python
def f(x):
\treturn "<i>" + x  # & more

```

    indented code

~~~
tildes
~~~

---

[a link](https://example.com/a_(b)?q=1&r=2 "title"), <https://example.com/auto>, https://example.com/bare.
<someone@example.com>, ![a picture](https://example.com/x.png), &amp; &lt;b&gt; &#65; \\*not em\\*

A formula, \\(x^2\\), and a price, $5:

$$
\\frac{1}{2}
$$

Emoji 🌿 and 漢字 **太字** stay whole.
"""
