// The demo's and the stories' service: a map server that knows nothing of
// cryptography. It greets whoever the gate says is calling.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: upstream HOST:PORT")
		os.Exit(2)
	}
	s := &http.Server{Addr: os.Args[1], ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "map tile %s for %s (credential %s)\n", r.URL.Path, r.Header.Get("Kagimori-Subject"), r.Header.Get("Kagimori-Credential"))
		})}
	log.Fatal(s.ListenAndServe())
}
