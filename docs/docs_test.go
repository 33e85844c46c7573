// Package docs_test keeps the documentation true: what the pages list is
// compared with what the program has, in both directions.
package docs_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dma/internal/config"
	"dma/internal/sendmail"
	"dma/runner"
	"dma/spooldir"
	"dma/states"
)

const root = ".."

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// section returns the text of one section (.Sh) of a page.
func section(t *testing.T, page, name string) string {
	t.Helper()
	_, text, ok := strings.Cut(read(t, page), "\n.Sh "+name+"\n")
	if !ok {
		t.Fatalf("%s has no section %s", page, name)
	}
	text, _, _ = strings.Cut(text, "\n.Sh ")
	return text
}

// items returns the first submatch of a pattern in all lines of a text.
func items(text, pattern string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`(?m)`+pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// same compares what a page lists with what the program has.
func same(t *testing.T, page, what string, documented, real []string) {
	t.Helper()
	for _, r := range real {
		if !slices.Contains(documented, r) {
			t.Errorf("%s does not have the %s %q", page, what, r)
		}
	}
	seen := make(map[string]bool)
	for _, d := range documented {
		if !slices.Contains(real, d) {
			t.Errorf("%s has the %s %q, which does not exist", page, what, d)
		}
		if seen[d] {
			t.Errorf("%s has the %s %q twice", page, what, d)
		}
		seen[d] = true
	}
	if len(real) == 0 {
		t.Errorf("nothing found to compare %s with: %s", page, what)
	}
}

const noEffect = "It has no effect yet"

func TestConfigurationKeys(t *testing.T) {
	const page = "dma.conf.5"
	var b bytes.Buffer
	if err := config.Default().Write(&b); err != nil {
		t.Fatal(err)
	}
	var keys []string
	defaults := make(map[string]string)
	for line := range strings.Lines(b.String()) {
		key, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "# "), " ")
		keys = append(keys, key)
		if defaults[key] = value; value == "" {
			defaults[key] = "none"
		}
	}
	text := section(t, page, "KEYS")
	same(t, page, "key", items(text, `^\.It Sy ([A-Z_]+) `), keys)

	users := usersOfKeys(t)
	for _, item := range strings.Split(text, "\n.It Sy ")[1:] {
		key, _, _ := strings.Cut(item, " ")
		item, _, _ = strings.Cut(item, "\n.Ss ")
		if want := "\nDefault: " + defaults[key] + ".\n"; !strings.Contains(item+"\n", want) {
			t.Errorf("%s: %s lacks the line %q", page, key, strings.TrimSpace(want))
		}
		says, used := strings.Contains(item, noEffect), users[key]
		if says && used != "" {
			t.Errorf("%s says that %s has no effect, but %s uses it", page, key, used)
		}
		if !says && used == "" {
			t.Errorf("%s does not say that %s has no effect, and nothing uses it", page, key)
		}
	}
}

// usersOfKeys returns for each key a file beyond package config that looks at
// it, directly or through a method of Config that does.
func usersOfKeys(t *testing.T) map[string]string {
	t.Helper()
	key := make(map[string]string) // by the name of its field in Config
	inspect(t, filepath.Join(root, "internal/config/keys.go"), func(n ast.Node) {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) < 2 {
			return
		}
		name, ok1 := call.Args[0].(*ast.BasicLit)
		field, ok2 := call.Args[1].(*ast.UnaryExpr)
		if ok1 && ok2 {
			s, _ := strconv.Unquote(name.Value)
			key[field.X.(*ast.SelectorExpr).Sel.Name] = s
		}
	})
	key["HostName"], key["MasqueradeParts"], key["SmarthostBad"] = "MAILNAME", "MASQUERADE", "SMARTHOST"
	key["MboxFlock"] = "MBOXLOCK"

	users := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "../internal/config/") {
			return err
		}
		uses, fields := false, make(map[string]bool)
		inspect(t, path, func(n ast.Node) {
			switch n := n.(type) {
			case *ast.ImportSpec:
				uses = uses || n.Path.Value == `"dma/internal/config"`
			case *ast.SelectorExpr:
				fields[n.Sel.Name] = true
			}
		})
		for f := range fields {
			if uses && key[f] != "" {
				users[key[f]] = path
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return users
}

func inspect(t *testing.T, path string, visit func(ast.Node)) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool { visit(n); return true })
}

func TestSendmailOptions(t *testing.T) {
	const page = "dma.8"
	var help bytes.Buffer
	p := sendmail.Process{Args: []string{"dma", "--help"}, Stdout: &help, Stderr: os.Stderr}
	if status := p.Run(); status != 0 {
		t.Fatalf("dma --help ends with %d", status)
	}
	// With what stands behind the letter: nothing, " Ar" or " Ns Op Ar".
	var options, idle []string
	for _, m := range regexp.MustCompile(`(?m)^  -(.)(\[arg\]| arg)? +(.*)`).FindAllStringSubmatch(help.String(), -1) {
		form := m[1] + map[string]string{"": "", " arg": " Ar", "[arg]": " Ns Op Ar"}[m[2]]
		options = append(options, form)
		if strings.Contains(m[3], "taken, without effect") {
			idle = append(idle, form)
		}
	}
	const form = `^\.It Fl ([A-Za-z](?: Ar| Ns Op Ar| Cm)?)\b`
	effective, taken, ok := strings.Cut(section(t, page, "OPTIONS"), "change nothing:")
	if !ok {
		t.Fatalf("%s does not tell options without effect from the others", page)
	}
	norm := func(list []string) []string {
		for i := range list {
			list[i] = strings.Replace(list[i], " Cm", " Ar", 1)
		}
		return list
	}
	same(t, page, "option", append(norm(items(effective, form)), norm(items(taken, form))...), options)
	for _, o := range idle {
		if !slices.Contains(norm(items(taken, form)), o) {
			t.Errorf("%s does not have option -%s among those that change nothing", page, o)
		}
	}

	_, err := sendmail.ParseOptions("dma", []string{"-b", "?"})
	if err == nil {
		t.Fatal("-b ? is no error")
	}
	modes := items(err.Error(), `-b([a-z])\b`)
	mode, _, _ := strings.Cut(effective, "\n.It Fl C ")
	same(t, page, "mode", items(mode, `^\.It Cm ([a-z])$`), modes)
}

func TestRunnerCommands(t *testing.T) {
	const page = "dma-runner.8"
	var help bytes.Buffer
	if status := runner.Main([]string{"--help"}, runner.Stdio{Out: &help, Err: os.Stderr}); status != 0 {
		t.Fatalf("dma-runner --help ends with %d", status)
	}
	same(t, page, "command", items(section(t, page, "COMMANDS"), `^\.It Cm ([a-z]+)`), items(help.String(), `^  ([a-z]+) `))
}

func TestExitCodes(t *testing.T) {
	for page, dir := range map[string]string{"dma.8": "internal/sendmail", "dma-runner.8": "runner"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		code, uses := make(map[string]string), make(map[string]int)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text := read(t, file)
			for _, m := range regexp.MustCompile(`(?m)^\t(exit[A-Z]\w*)\s+= (\d+)$`).FindAllStringSubmatch(text, -1) {
				code[m[1]] = m[2]
			}
			for _, name := range regexp.MustCompile(`\bexit[A-Z]\w*`).FindAllString(text, -1) {
				uses[name]++
			}
		}
		var codes []string
		for name, c := range code {
			if uses[name] > 1 {
				codes = append(codes, c)
			}
		}
		same(t, page, "exit code", items(section(t, page, "EXIT STATUS"), `^\.It (\d+)$`), codes)
	}
}

const spoolPage = "dma-spool.5"

func TestSpoolDirectories(t *testing.T) {
	dirs := []string{string(spooldir.Tmp), string(spooldir.Corrupt), spooldir.LogDir, spooldir.LockDir}
	for _, s := range spooldir.States() {
		dirs = append(dirs, string(s))
	}
	text := section(t, spoolPage, "DIRECTORIES")
	list, _, _ := strings.Cut(text, "\n.El")
	same(t, spoolPage, "directory", items(list, `^\.It Pa (\w+)$`), dirs)

	var kinds []string
	for k := spooldir.Address; k <= spooldir.Command; k++ {
		kinds = append(kinds, k.String())
	}
	_, text, _ = strings.Cut(section(t, spoolPage, "MESSAGE FILE"), "\n.Ss Recipients\n")
	list, _, _ = strings.Cut(text, "\n.El")
	same(t, spoolPage, "kind of recipient", items(list, `^\.It Li (\w+)$`), kinds)

	events := items(read(t, filepath.Join(root, "spooldir/journal.go")), `^\t\w+ +Event += "(\w+)"`)
	list, _, _ = strings.Cut(section(t, spoolPage, "JOURNAL"), "\n.El")
	same(t, spoolPage, "event", items(list, `^\.It Li (\w+)$`), events)
}

// TestSteps compares the table of steps: from, to, who and when.
func TestSteps(t *testing.T) {
	name := func(s spooldir.State) string {
		if s == states.Gone {
			return "gone"
		}
		return string(s)
	}
	var real, documented []string
	for _, s := range states.Table() {
		for _, by := range s.By {
			real = append(real, fmt.Sprintf("%s > %s by %s: %s", name(s.From), name(s.To), by, s.When))
		}
	}
	for _, row := range items(section(t, spoolPage, "STEPS"), `^\.It (\w+ Ta .*)$`) {
		cells := strings.Split(row, " Ta ")
		if len(cells) != 4 {
			t.Errorf("%s: row %q has %d cells", spoolPage, row, len(cells))
			continue
		}
		from := []string{cells[0]}
		if cells[0] == "waiting" {
			from = nil
			for _, s := range spooldir.States() {
				if s.Waiting() {
					from = append(from, string(s))
				}
			}
		}
		for _, f := range from {
			for by := range strings.SplitSeq(cells[2], ", ") {
				documented = append(documented, fmt.Sprintf("%s > %s by %s: %s", f, cells[1], by, cells[3]))
			}
		}
	}
	same(t, spoolPage, "step", documented, real)
}

// TestLinks follows the links of the README and the references between pages.
func TestLinks(t *testing.T) {
	text := read(t, filepath.Join(root, "README.md"))
	links := items(text, `\]\(([^)\s]+)\)`)
	if len(links) == 0 {
		t.Error("README.md has no links")
	}
	for _, link := range links {
		path, _, _ := strings.Cut(link, "#")
		if strings.Contains(link, "://") || path == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			t.Errorf("README.md: %v", err)
		}
	}
	// Programs of ours that it names, too.
	for _, script := range items(text, "\\b(scripts/[a-z]+)\\b") {
		if _, err := os.Stat(filepath.Join(root, script)); err != nil {
			t.Errorf("README.md: %v", err)
		}
	}
	pages, err := filepath.Glob("*.[58]")
	if err != nil || len(pages) != 4 {
		t.Fatalf("pages %q, error %v", pages, err)
	}
	for _, page := range pages {
		for _, m := range regexp.MustCompile(`(?m)\bXr (dma[a-z.-]*) ([58])`).FindAllStringSubmatch(read(t, page), -1) {
			if file := m[1] + "." + m[2]; !slices.Contains(pages, file) {
				t.Errorf("%s refers to %s, which does not exist", page, file)
			}
		}
	}
}

// TestPagesAreClean has mandoc, where there is one, judge the pages.
func TestPagesAreClean(t *testing.T) {
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("no mandoc")
	}
	pages, _ := filepath.Glob("*.[58]")
	out, err := exec.Command(mandoc, append([]string{"-T", "lint", "-W", "warning"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}
