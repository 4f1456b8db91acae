package main

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// Shells complete ids by asking the daemon; one that does not answer gives none.

// completeTime is how long a shell waits for that.
const completeTime = time.Second

// completed asks for ids by a method that gives pages of them.
func completed(cmd *cobra.Command, method, prefix string, read func(json.RawMessage) []string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completeTime)
	defer cancel()
	var list []string
	if c, err := control.Dial(ctx, verb.Socket(cmd)); err == nil {
		defer c.Close()
		_ = c.Stream(ctx, method, nil, func(raw json.RawMessage) error {
			for _, id := range read(raw) {
				if strings.HasPrefix(id, prefix) {
					list = append(list, id)
				}
			}
			return nil
		})
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// credentialIDs completes the ids of credentials that are here.
func credentialIDs(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return completed(cmd, "com.kagimori.agent.CredentialList", prefix, func(raw json.RawMessage) (ids []string) {
		var page agent.CredentialPage
		if json.Unmarshal(raw, &page) == nil {
			for _, c := range page.Credentials {
				ids = append(ids, string(c.ID)+"\t"+string(c.Service))
			}
		}
		return ids
	})
}

// copyIDs completes the short ids of key copies on record, once.
func copyIDs(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completed(cmd, "com.kagimori.agent.KeycopyList", prefix, func(raw json.RawMessage) (ids []string) {
		var page agent.KeycopyDeals
		if json.Unmarshal(raw, &page) == nil {
			for _, d := range page.Copies {
				ids = append(ids, d.Short+"\t"+d.Text)
			}
		}
		return ids
	})
}

// oneCredential completes a verb's only argument.
func oneCredential(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return credentialIDs(cmd, args, prefix)
}

// withIDs makes the flag --credential complete the ids that are here.
func withIDs(cmd *cobra.Command) *cobra.Command {
	if err := cmd.RegisterFlagCompletionFunc("credential", credentialIDs); err != nil {
		panic(err) // the flag is not there
	}
	return cmd
}

// oneOf makes a flag complete the words that it takes.
func oneOf(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is not there
	}
}
