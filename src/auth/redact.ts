/** Text from outside for the log, without access tokens: some tools send them as the user's name. */
export function redactTokens(text: string): string {
  return text.replace(/bht_[0-9a-f]{32}_[\w-]{43}/g, 'bht_***')
}

/** A path for the log, without access tokens and without what looks like a password before an `@`. */
export function redactPath(path: string): string {
  return redactTokens(path).replace(/[^/]*@/g, '***@')
}
