package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport/control"
)

// listFlags are the flags that all lists have.
type listFlags struct {
	sort    string
	reverse bool
	where   []string
}

func (q *listFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&q.sort, "sort", "", "`COLUMN` to sort by")
	cmd.Flags().BoolVar(&q.reverse, "reverse", false, "largest first")
	cmd.Flags().StringArrayVar(&q.where, "where", nil, "`COLUMN=VALUE` that rows must have; may be given several times")
}

// empty is what an empty list says: that there is nothing, or nothing such.
func (q *listFlags) empty(byDefault string) string {
	if len(q.where) == 0 {
		return byDefault
	}
	return "none match; leave the filters out for all"
}

// pages calls page until the list ends.
func (q *listFlags) pages(cmd *cobra.Command, page func(server.ListParams) (next string, err error)) error {
	in := server.ListParams{Sort: q.sort, Desc: q.reverse, Limit: pageRows, Filter: map[string]string{}}
	for _, w := range q.where {
		column, value, ok := strings.Cut(w, "=")
		if !ok {
			return control.Problemf(control.Usage, "write --where COLUMN=VALUE", "--where %q has no =", w)
		}
		in.Filter[column] = value
	}
	for {
		next, err := page(in)
		if err != nil || next == "" {
			return err
		}
		in.After = next
		if err := cmd.Context().Err(); err != nil {
			return err
		}
	}
}

// pageRows is how many rows are asked for at once.
const pageRows = 100
