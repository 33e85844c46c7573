// Dma takes mail from the programs and people of this host, under the names
// dma and sendmail; it lists the queue as mailq and checks the aliases as
// newaliases. It is installed setgid, and what is more than submission it leaves
// to dma-runner.
package main

import (
	"os"

	"dma/internal/sendmail"
)

func main() { os.Exit(sendmail.Main()) }
