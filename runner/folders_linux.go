package runner

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// startTime is how long the process that looks may take besides.
const startTime = 10 * time.Second

// lookApart looks at the folders of aliases files, and of what they include, before
// this process puts its sandbox on. That is put on thread by thread, and would wait
// for one that hangs in a file system: so another process looks, and this one only
// at what has answered.
func lookApart(paths []string, within time.Duration) (folders, error) {
	text, err := json.Marshal(lookRequest{paths, within})
	if err != nil {
		return nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	defer in.Close()
	for fd := 3; fd <= countFile; fd++ {
		unix.CloseOnExec(fd) // it may outlive this process
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"dma-runner: folders", roleFolders}
	cmd.Stdin, cmd.Stdout, cmd.Dir = bytes.NewReader(text), in, "/"
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		go func() { _ = cmd.Wait() }() // where it hangs for good, it does not end
	}()
	in.Close()
	if err := out.SetReadDeadline(time.Now().Add(2*within + startTime)); err != nil {
		return nil, err
	}
	var found map[string]seen
	if err := json.NewDecoder(out).Decode(&found); err != nil {
		return nil, err
	}
	open := make(folders)
	for dir, s := range found {
		d := folder{fixed: s.Fixed, led: s.Led}
		if s.There {
			d.info, _ = os.Stat(dir)
		}
		open[dir] = d
	}
	return open, nil
}
