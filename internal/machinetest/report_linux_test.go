package machinetest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dma/parent"
)

// row is a process of the running service, as /proc shows it.
type row struct {
	process
	what        string
	descriptors []string
	pss         string // kB
	cpu         time.Duration
}

// rowOf reads what /proc says of a process; nil if it has ended.
func rowOf(p process, what string) *row {
	r := &row{process: p, what: what}
	dir := fmt.Sprintf("/proc/%d/", p.pid)
	names, err := os.ReadDir(dir + "fd")
	if err != nil {
		return nil
	}
	for _, name := range names {
		link, err := os.Readlink(dir + "fd/" + name.Name())
		if err != nil {
			continue
		}
		kind, _, found := strings.Cut(link, ":[")
		if !found {
			kind = link
		}
		r.descriptors = append(r.descriptors, name.Name()+"="+kind)
	}
	slices.SortFunc(r.descriptors, func(a, b string) int {
		x, _, _ := strings.Cut(a, "=")
		y, _, _ := strings.Cut(b, "=")
		i, _ := strconv.Atoi(x)
		j, _ := strconv.Atoi(y)
		return i - j
	})
	r.pss = strings.TrimSuffix(statusOf(dir + "smaps_rollup")["Pss"], " kB")
	if text, err := os.ReadFile(dir + "stat"); err == nil {
		_, after, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(after); len(f) > 12 {
			user, _ := strconv.Atoi(f[11])
			system, _ := strconv.Atoi(f[12])
			r.cpu = time.Duration(user+system) * 10 * time.Millisecond
		}
	}
	return r
}

// capabilities names a set of /proc/PID/status.
func capabilities(hex string) string {
	set, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return "?"
	}
	names := map[int]string{0: "chown", 1: "dac_override", 5: "kill", 6: "setgid", 7: "setuid"}
	var out []string
	for i := range 64 {
		if set&(1<<i) != 0 {
			name := names[i]
			if name == "" {
				name = strconv.Itoa(i)
			}
			out = append(out, name)
		}
	}
	if len(out) > 8 {
		return "all"
	}
	return strings.Join(out, ",")
}

// TestReport prints what each process of the running service is and may, from
// /proc, and what it costs. What concerns security is checked.
func TestReport(t *testing.T) {
	m := newMachine(t)
	m.own("bob", ".forward", "\\bob, \"|cat > /dev/null; sleep 3\"\n", 0o644)
	begun := time.Now()
	v := m.start()
	ready := time.Since(begun)
	m.submit("alice", "x", "alice", "bob", "friend@example.org")
	rows := make(map[string]*row)
	v.await("all processes", func() bool {
		now := m.victims(v)
		for kind, pids := range now {
			for _, p := range m.processes() {
				uid := strings.Fields(p.status["Uid"])[0]
				if !slices.Contains(pids, p.pid) || kind == "user agent" && (uid != "2002" || len(now["command"]) == 0) {
					continue // of bob's agent we know that it is at work
				}
				if r := rowOf(p, kind); r != nil && len(r.descriptors) > 5 {
					rows[kind] = r
				}
			}
		}
		return len(rows) == 5
	})
	mail, staff := strconv.Itoa(groupOf(t, "mail")), "2002 "+strconv.Itoa(staffGroup)
	group := strconv.Itoa(submitGroup)
	same := func(id string) string { return strings.Join([]string{id, id, id, id}, " ") }
	landlock := func(role string) string {
		for line := range strings.Lines(v.log()) {
			if strings.Contains(line, "sandboxed role="+role) {
				_, after, _ := strings.Cut(line, "landlock=")
				return strings.Fields(after)[0]
			}
		}
		return "no"
	}
	for _, want := range []struct {
		what, uid, gid, groups, caps, bound, nnp, seccomp, landlock string
		descriptors                                                 []string // how they begin; the runtime opens more
	}{
		{"parent", same("0"), same("0"), group, "chown,kill,setgid,setuid", "chown,kill,setgid,setuid", "0", "0", "no", nil},
		{"queue", same("990"), same("990"), group, "", "chown,kill,setgid,setuid", "1", "2", landlock("queue"),
			[]string{"0=/dev/null", "1=/dev/null", "2=", "3=socket", "", "5=pipe", "6=socket", "7=pipe", "8=pipe"}},
		{"net", same("991"), same("991"), group, "", "chown,kill,setgid,setuid", "1", "2", landlock("net"),
			[]string{"0=/dev/null", "1=/dev/null", "2=", "3=socket", "", "5=pipe", "6=/dev/null", "7=pipe", "8=pipe"}},
		{"mailbox writer", "", same(mail), "", "", "chown,kill,setgid,setuid", "0", "0", "no",
			[]string{"0=/dev/null", "1=/dev/null", "2=/dev/null", "3=socket", "", "5=pipe", "6=/run/dma/agents/"}},
		{"user agent", same("2002"), same("2002"), staff, "", "chown,kill,setgid,setuid", "0", "0", "no",
			[]string{"0=/dev/null", "1=/dev/null", "2=/dev/null", "3=socket", "", "5=pipe", "6=/run/dma/agents/"}},
	} {
		r := rows[want.what]
		uid := want.uid
		if uid == "" { // of alice or of bob
			uid = r.status["Uid"]
			if uid != same("2001") && uid != same("2002") {
				t.Errorf("%s: uid %s", want.what, uid)
			}
		}
		for _, c := range [][3]string{
			{"uid", r.status["Uid"], uid}, {"gid", r.status["Gid"], want.gid}, {"groups", r.status["Groups"], want.groups},
			{"CapEff", capabilities(r.status["CapEff"]), want.caps}, {"CapPrm", capabilities(r.status["CapPrm"]), want.caps},
			{"CapInh", capabilities(r.status["CapInh"]), ""}, {"CapAmb", capabilities(r.status["CapAmb"]), ""},
			{"NoNewPrivs", r.status["NoNewPrivs"], want.nnp}, {"Seccomp", r.status["Seccomp"], want.seccomp},
		} {
			if c[1] != c[2] {
				t.Errorf("%s: %s %q, want %q", want.what, c[0], c[1], c[2])
			}
		}
		// What it can't have by its uid is no matter: a set of bounds may be smaller.
		if got := capabilities(r.status["CapBnd"]); got != want.bound && got != "" {
			t.Errorf("%s: bounding set %q, want %q", want.what, got, want.bound)
		}
		if want.landlock == "no" && want.nnp == "1" {
			t.Errorf("%s: no Landlock\n%s", want.what, v.log())
		}
		for _, begin := range want.descriptors {
			if begin == "" {
				continue // the setup, closed, and taken by what was opened next
			}
			found := slices.ContainsFunc(r.descriptors, func(d string) bool { return strings.HasPrefix(d, begin) })
			if !found {
				t.Errorf("%s: no descriptor %s: %q", want.what, begin, r.descriptors)
			}
		}
		t.Logf("%-14s | uid %s | gid %s | groups %s | caps %s | bound %s | nnp %s | landlock %s | seccomp %s | PSS %s kB | CPU %v | fd %s",
			want.what, strings.Fields(r.status["Uid"])[0], strings.Fields(r.status["Gid"])[0], r.status["Groups"], capabilities(r.status["CapEff"]),
			capabilities(r.status["CapBnd"]), r.status["NoNewPrivs"], want.landlock, r.status["Seccomp"], r.pss, r.cpu, strings.Join(r.descriptors, " "))
	}
	t.Logf("from the start to READY=1, all three processes: %v", ready.Round(time.Millisecond))
	t.Logf("lines that run with privilege: %s", privileged(t))
	v.empties(m)
	v.stop()
	m.nobodyLeft()

	m.installEvil()
	next, _ := m.takeOver(parent.RoleQueue)
	v = m.startUnready()
	e := next()
	for _, role := range []string{"mailbox", "user"} {
		r := e.order(evilOrder{Do: "agents", Args: []string{"alice", role}, N: 21})
		if r.Err != "" {
			t.Fatalf("%+v\n%s", r, v.log())
		}
		var took []time.Duration
		for word := range strings.FieldsSeq(r.Text) {
			n, err := strconv.ParseInt(word, 10, 64)
			m.do(err)
			took = append(took, time.Duration(n))
		}
		slices.Sort(took)
		t.Logf("from the request for an agent to its first answer, role %s: median %v, slowest %v of %d", role,
			took[len(took)/2].Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond), len(took))
	}
	e.conn.Close()
	v.stop()
	m.nobodyLeft()
}

// privileged counts the lines of code that the parent process may run, without blank
// lines and comments: of a package that works for it the whole, of others the files
// with the functions that it calls. What it imports and does not run is named too,
// so that nothing comes in unseen.
func privileged(t *testing.T) string {
	files := map[string][]string{
		"parent": nil, "internal/wire": nil, "internal/fsid": nil, "internal/config": nil, "internal/address": nil,
		"internal/passwd": nil, "internal/notify": nil, "internal/maillog": nil,
		"runner":        {"main.go", "separate.go", "init.go", "members.go"},
		"agent":         {"setup.go", "role.go"},
		"internal/door": {"listen.go"},
		"spooldir":      {"layout.go", "shared.go", "scan.go", "id.go"},
		"forward":       {}, // what agents do with a setup
	}
	total := 0
	var parts []string
	for _, dir := range slices.Sorted(maps.Keys(files)) {
		names := files[dir]
		if names == nil {
			all, err := filepath.Glob("../../" + dir + "/*.go")
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range all {
				name := filepath.Base(path)
				other := strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, "_other.go") || dir == "parent" && name == "client.go"
				if !other {
					names = append(names, name)
				}
			}
		}
		lines := 0
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join("../..", dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				line = strings.TrimSpace(line)
				if line != "" && !strings.HasPrefix(line, "//") {
					lines++
				}
				if imported, ok := strings.CutPrefix(line, `"dma/`); ok && strings.HasSuffix(imported, `"`) {
					if _, ok := files[strings.TrimSuffix(imported, `"`)]; !ok {
						t.Errorf("%s/%s imports %s, of which nobody has counted what runs with privilege", dir, name, imported)
					}
				}
			}
		}
		if lines > 0 {
			total += lines
			parts = append(parts, fmt.Sprintf("%s %d", dir, lines))
		}
	}
	return fmt.Sprintf("%d: %s", total, strings.Join(parts, ", "))
}

// TestLocalRate prints how fast local mail goes to one user and to 50.
func TestLocalRate(t *testing.T) {
	for _, users := range []int{1, 50} {
		m := newMachine(t)
		m.addCrowd(users)
		const messages = 200
		// Messages that wait: the service alone is measured.
		var names []string
		for i := range users {
			names = append(names, fmt.Sprintf("crowd%d", i))
		}
		for i := range messages {
			m.submit("alice", fmt.Sprint(i), names[i%users])
		}
		begun := time.Now()
		v := m.start()
		v.empties(m)
		took := time.Since(begun)
		total := 0
		for _, name := range names {
			total += strings.Count("\n"+m.mailbox(name), "\nFrom ")
		}
		if total != messages {
			t.Errorf("%d users: %d messages of %d", users, total, messages)
		}
		t.Logf("%d users: %d deliveries in %v, the start included: %.0f a second", users, total, took.Round(time.Millisecond), float64(total)/took.Seconds())
		v.stop()
		m.nobodyLeft()
	}
}

// addCrowd adds users crowd0, crowd1 and so on until the test ends.
func (m *machine) addCrowd(n int) {
	m.t.Helper()
	old, err := os.ReadFile("/etc/passwd")
	m.do(err)
	text := string(old)
	for i := range n {
		home := fmt.Sprintf("/home/crowd%d", i)
		text += fmt.Sprintf("crowd%d:x:%d:%d::%s:/bin/sh\n", i, 4000+i, 4000+i, home)
		m.do(os.Mkdir(home, 0o755))
		m.do(os.Chown(home, 4000+i, 4000+i))
	}
	m.do(os.WriteFile("/etc/passwd", []byte(text), 0o644))
	m.t.Cleanup(func() { m.do(os.WriteFile("/etc/passwd", old, 0o644)) })
}
