/** What an upstream wants to see before it answers. */
export type Challenge =
  | {
      readonly scheme: 'bearer'
      readonly realm: string
      readonly service: string | undefined
      readonly scope: string | undefined
    }
  | { readonly scheme: 'basic' }

/** Longer challenges are nobody's. */
const longest = 4096

const token = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y
const parameter = /[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))/y
const gap = /[\s,]*/y

/**
 * Reads `WWW-Authenticate` (protocol AU-01 to AU-03): of several challenges a Bearer one with a realm comes first.
 * @returns undefined when there is none that is known
 */
export function parseChallenge(header: string | readonly string[] | undefined): Challenge | undefined {
  const lines = header === undefined ? [] : typeof header === 'string' ? [header] : header
  const challenges = lines.filter(({ length }) => length <= longest).flatMap(challengesOf)
  return challenges.find(({ scheme }) => scheme === 'bearer') ?? challenges[0]
}

function challengesOf(line: string): Challenge[] {
  const found: Challenge[] = []
  for (let at = skip(line, 0); at < line.length; at = skip(line, at)) {
    token.lastIndex = at
    const scheme = token.exec(line)?.[0].toLowerCase()
    if (scheme === undefined) break
    const [parameters, end] = parametersOf(line, at + scheme.length)
    at = end
    const challenge = challengeOf(scheme, parameters)
    if (challenge !== undefined) found.push(challenge)
  }
  return found
}

function skip(line: string, at: number): number {
  gap.lastIndex = at
  gap.exec(line)
  return gap.lastIndex
}

function parametersOf(line: string, start: number): [ReadonlyMap<string, string>, number] {
  const parameters = new Map<string, string>()
  let at = start
  for (;;) {
    parameter.lastIndex = at
    const match = parameter.exec(line)
    if (match === null) return [parameters, at]
    const [, name = '', quoted, bare = ''] = match
    parameters.set(name.toLowerCase(), quoted === undefined ? bare : quoted.replaceAll(/\\(.)/g, '$1'))
    at = parameter.lastIndex
  }
}

function challengeOf(scheme: string, parameters: ReadonlyMap<string, string>): Challenge | undefined {
  if (scheme === 'basic') return { scheme }
  const realm = parameters.get('realm')
  if (scheme !== 'bearer' || realm === undefined) return undefined
  return { scheme, realm, service: parameters.get('service'), scope: parameters.get('scope') }
}
