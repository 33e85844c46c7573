package localtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"dma/forward"
	"dma/internal/peertest"
)

// judge is Postfix in a root, for its reading of aliases files.
type judge struct {
	*peertest.Root
	t testing.TB
}

func newJudge(t testing.TB) *judge {
	t.Helper()
	peertest.Need(t)
	j := &judge{peertest.NewRoot(t, peertest.Peers()), t}
	j.Write("etc/postfix/main.cf", "compatibility_level = 3.6\nmyhostname = host.example\n")
	j.Write("etc/postfix/dynamicmaps.cf", j.Read("usr/share/postfix/dynamicmaps.cf"))
	return j
}

// read returns what Postfix makes of each text: the value for each name. The
// program runs once to make all the tables.
func (j *judge) read(texts []string) []map[string]string {
	j.t.Helper()
	args := []string{"-o"}
	for i, text := range texts {
		name := fmt.Sprintf("/tmp/aliases%d", i)
		j.Write(name, text)
		args = append(args, "hash:"+name)
	}
	if res := j.Run(j.Command("postalias", args...), ""); res.Code != 0 {
		j.t.Fatalf("postalias: exit %d\n%s", res.Code, res.Stderr)
	}
	script := fmt.Sprintf("for i in $(seq 0 %d); do echo; postalias -o -s hash:/tmp/aliases$i || exit; done", len(texts)-1)
	out := j.Must(j.Command("sh", "-c", script), "")
	var list []map[string]string
	for block := range strings.SplitSeq(strings.TrimPrefix(out, "\n"), "\n\n") {
		values := make(map[string]string)
		for line := range strings.Lines(block) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
			if name != "@" && !strings.HasPrefix(name, "YP_") {
				values[name] = value
			}
		}
		list = append(list, values)
	}
	if len(list) != len(texts) {
		j.t.Fatalf("%d tables for %d files", len(list), len(texts))
	}
	return list
}

// canonical splits a value of Postfix into its targets, without quotes and
// names of people.
func canonical(value string) []string {
	var list []string
	var b strings.Builder
	quoted, whole := false, true
	end := func() {
		text := strings.TrimSpace(b.String())
		if _, address, ok := strings.Cut(text, "<"); ok && !whole {
			text, _, _ = strings.Cut(address, ">")
		}
		if text != "" {
			list = append(list, text)
		}
		b.Reset()
		whole = true
	}
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && quoted && i+1 < len(value):
			i++
			b.WriteByte(value[i])
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			end()
		default:
			whole = whole && (quoted || c == ' ')
			b.WriteByte(c)
		}
	}
	end()
	return list
}

// ours returns what dma makes of a text, as canonical does.
func ours(t testing.TB, path string) map[string][]string {
	t.Helper()
	aliases, _, err := forward.LoadAliases(path)
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string][]string)
	for _, name := range aliases.Names() {
		targets, ok, err := aliases.Lookup(name)
		if err != nil || !ok {
			continue
		}
		for _, target := range targets {
			prefix := map[forward.Kind]string{forward.Command: "|", forward.Include: ":include:", forward.Mailbox: `\`}[target.Kind]
			text := prefix + target.Value
			if target.Kind == forward.Discard {
				text = "/dev/null"
			}
			values[name] = append(values[name], text)
		}
	}
	return values
}

// Files of the syntax that dma and Postfix share mean the same to both: what
// was meant.
func TestAliases(t *testing.T) {
	const files, sections = 40, 50
	j := newJudge(t)
	texts := make([]string, files)
	meant := make([]map[string][]string, files)
	for i := range files {
		g := &writer{Rand: rand.New(rand.NewPCG(5, uint64(i))), meant: make(map[string][]string)}
		for n := range sections {
			g.section(n)
		}
		texts[i], meant[i] = g.b.String(), g.meant
		if i%2 == 0 {
			texts[i] = strings.TrimRight(texts[i], "\n")
		}
		if i%8 == 1 {
			texts[i] = strings.ReplaceAll(texts[i], "\n", "\r\n")
		}
	}
	theirs := j.read(texts)
	differ := 0
	for i := range files {
		mine := ours(t, j.Path(fmt.Sprintf("/tmp/aliases%d", i)))
		for name, want := range meant[i] {
			value, ok := theirs[i][name]
			if !ok || !slices.Equal(canonical(value), want) || !slices.Equal(mine[name], want) {
				if differ++; differ < 20 {
					t.Errorf("file %d, %q means %q; dma says %q, Postfix %q", i, name, want, mine[name], value)
				}
			}
			delete(theirs[i], name)
			delete(mine, name)
		}
		if len(theirs[i])+len(mine) > 0 {
			t.Errorf("file %d: besides what was meant dma reads %q, Postfix %q", i, mine, theirs[i])
		}
	}
}

// writer writes an aliases file, and what it means.
type writer struct {
	*rand.Rand
	b     strings.Builder
	meant map[string][]string // by name in lower case
}

func (g *writer) one(of ...string) string { return of[g.IntN(len(of))] }

// blank is white space within a logical line.
func (g *writer) blank() string {
	return g.one("", "", "", " ", " ", "\t", "  ", "\n ", "\n\t", "\n# note, \"of: no\n ", "\n\n  ")
}

// section writes some lines: an alias or two, a comment, the same name again.
func (g *writer) section(n int) {
	switch g.IntN(8) {
	case 0:
		g.b.WriteString(g.one("# a comment: x\n", "\n", "   \n", "\t# another, \"\n", "#\n"))
	case 1: // a second one has no effect
		name := fmt.Sprintf("name%d", n)
		g.alias(name, name)
		fmt.Fprintf(&g.b, "%s: %s\n", strings.ToUpper(name), "another")
		return
	}
	switch name := fmt.Sprintf("name%d", n); g.IntN(5) {
	case 0:
		g.alias(`"`+name+` of Two Words"`, name+" of two words")
	case 1:
		g.alias(fmt.Sprintf(`"%s: colon, comma"`, name), name+": colon, comma")
	case 2:
		g.alias("Owner-"+strings.ToUpper(name), "owner-"+name)
	case 3:
		g.alias(name+"+detail.x_y-z=1", name+"+detail.x_y-z=1")
	default:
		g.alias(name, name)
	}
}

func (g *writer) alias(written, name string) {
	g.b.WriteString(written + g.one("", "", " ", "\t") + ":")
	var list []string
	for i := range 1 + g.IntN(4) {
		if i > 0 {
			g.b.WriteString(g.blank() + ",")
			if g.IntN(10) == 0 {
				g.b.WriteString(g.blank() + ",")
			}
		}
		g.b.WriteString(g.blank())
		text, means := g.target()
		g.b.WriteString(text)
		list = append(list, means)
	}
	g.b.WriteString(g.one("", "", "", " ", ",", "\t ") + "\n")
	g.meant[name] = list
}

// target returns a target as it is written, and what it means.
func (g *writer) target() (text, means string) {
	n := g.IntN(1000)
	word := fmt.Sprintf("user%d", n)
	switch g.IntN(13) {
	case 0:
		return word + "@example.org", word + "@example.org"
	case 1:
		return "<" + word + "@example.org>", word + "@example.org"
	case 2:
		return "Jim Doe <" + word + "@example.org>", word + "@example.org"
	case 3:
		return `"Doe, Jim" <` + word + "@example.org>", word + "@example.org"
	case 4:
		return "/var/mail/" + word, "/var/mail/" + word
	case 5:
		return `"/var/mail/a ` + word + `, b"`, "/var/mail/a " + word + ", b"
	case 6:
		return `"|/bin/` + word + ` -a 'b, c' # \"d\" \\e"`, "|/bin/" + word + ` -a 'b, c' # "d" \e`
	case 7:
		return "|/bin/" + word, "|/bin/" + word
	case 8:
		return ":include:/etc/" + word, ":include:/etc/" + word
	case 9:
		return `":include:/etc/the ` + word + `"`, ":include:/etc/the " + word
	case 10:
		return "/dev/null", "/dev/null"
	case 11:
		return strings.ToUpper(word), strings.ToUpper(word)
	}
	return word, word
}

// Where dma reads aliases otherwise than Postfix, testdata/aliases.txt says how
// and why, and that is how both do read them.
func TestAliasDifferences(t *testing.T) {
	j := newJudge(t)
	data, err := os.ReadFile("testdata/aliases.txt")
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ line, postfix, dma, why string }
	var rows []row
	for block := range strings.SplitSeq(string(data), "\n\n") {
		var r row
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
			value = strings.TrimPrefix(strings.TrimLeft(value, " "), "|")
			switch key {
			case "line":
				r.line += value + "\n"
			case "Postfix":
				r.postfix = value
			case "dma":
				r.dma = value
			case "why":
				r.why = value
			}
		}
		if r.line != "" {
			rows = append(rows, r)
		}
	}
	var texts []string
	for _, r := range rows {
		texts = append(texts, r.line)
	}
	theirs := j.read(texts)
	for i, r := range rows {
		var mine []string
		values := ours(t, j.Path(fmt.Sprintf("/tmp/aliases%d", i)))
		for name, targets := range values {
			mine = append(mine, name+": "+strings.Join(targets, " + "))
		}
		var other []string
		for name, value := range theirs[i] {
			other = append(other, name+": "+value)
		}
		slices.Sort(mine)
		slices.Sort(other)
		or := func(list []string) string {
			if len(list) == 0 {
				return "refused"
			}
			return strings.Join(list, " / ")
		}
		if or(mine) != r.dma || or(other) != r.postfix || r.why == "" {
			t.Errorf("%s: not as the table has it:\nline     |%s\nPostfix  %s\ndma      %s", r.why, strings.ReplaceAll(strings.TrimRight(r.line, "\n"), "\n", "\nline     |"), or(other), or(mine))
		}
	}
}
