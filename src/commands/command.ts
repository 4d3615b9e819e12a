import { type ParseArgsConfig, parseArgs } from 'node:util'
import { withTyped } from './own-name.js'

/** What was typed is no command: exit code 2. The message is a sentence that says what to type. */
export class Misuse extends Error {
  override readonly name = 'Misuse'
}

/** The command is well said and cannot be done: exit code 1. The message is a sentence that says what to do. */
export class Refusal extends Error {
  override readonly name = 'Refusal'
}

/** A command with a help text of its own. */
export interface Command {
  /** What `--help` prints, without a newline at its end. */
  readonly usage: string
  /**
   * @param args what follows the command's name
   * @returns the exit code
   * @throws Misuse, Refusal, or ConfigError
   */
  run(args: readonly string[]): Promise<number>
}

type Options = NonNullable<ParseArgsConfig['options']>

/** What every command that works on a data folder takes. */
export const sharedOptions = {
  config: { type: 'string' },
  data: { type: 'string' },
  log: { type: 'string' },
} as const satisfies Options

/** The values of {@link sharedOptions}. */
export interface SharedValues {
  readonly config?: string | undefined
  readonly data?: string | undefined
  readonly log?: string | undefined
}

/** The lines of a help text that tell of {@link sharedOptions}. */
export const sharedUsage = `  --config FILE   the server's settings
  --data DIR      the server's data folder, when it is not the one in the settings
  --log json      write each change to stderr also as a line of the audit log`

/** Reads words, and options beside {@link sharedOptions}. @throws Misuse */
export function parse<const O extends Options>(args: readonly string[], options: O) {
  return parseExactly(args, { ...sharedOptions, ...options })
}

/** Reads words, and these options alone. @throws Misuse */
export function parseExactly<const O extends Options>(args: readonly string[], options: O) {
  if (args.some((text) => /^--?pass(?:word)?(?:=|$)/.test(text))) {
    throw new Misuse(
      'A password is no argument, where others can see it: it is asked for, or read from standard input.',
    )
  }
  try {
    return parseArgs({ args: [...args], allowPositionals: true, options })
  } catch (error) {
    throw new Misuse(firstSentence(error))
  }
}

/** The advice of parseArgs is for programmers; its first sentence is enough. */
function firstSentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return `${text.replace(/(?:\. |\.?\n)[\s\S]*$/, '').replace(/\.$/, '')}.`
}

/** Takes the first word out, which names a command; options may stand before it. */
export function splitCommand(args: readonly string[]): { name: string | undefined; rest: string[] } {
  const { tokens } = parseArgs({
    args: [...args],
    strict: false,
    allowPositionals: true,
    tokens: true,
    options: { ...sharedOptions, listen: { type: 'string' } },
  })
  const first = tokens.find((token) => token.kind === 'positional')
  if (first === undefined) return { name: undefined, rest: [...args] }
  return { name: args[first.index], rest: args.filter((_, index) => index !== first.index) }
}

/** A command that consists of others, told apart by the word that follows. */
export function commandGroup(
  name: string,
  usage: string,
  members: Readonly<Record<string, (args: readonly string[]) => Promise<number>>>,
): Command {
  return {
    usage,
    async run(args) {
      const { name: word, rest } = splitCommand(args)
      const member = word !== undefined && Object.hasOwn(members, word) ? members[word] : undefined
      if (member !== undefined) return member(rest)
      const names = Object.keys(members).join(', ')
      throw new Misuse(
        word === undefined
          ? `Say what to do: boathouse ${name} followed by one of ${names}.`
          : `"boathouse ${name}" is followed by one of ${names}.`,
      )
    },
  }
}

/** Exactly the words that a command takes. What is too much is not repeated: it may be a password. */
export function words<const N extends readonly string[]>(
  positionals: readonly string[],
  ...names: N
): { readonly [K in keyof N]: string } {
  const missing = names[positionals.length]
  if (missing !== undefined) throw new Misuse(`${missing} is missing.`)
  if (positionals.length > names.length) {
    throw new Misuse(
      names.length === 0 ? 'No words may follow here.' : `There are words after ${names.join(' ')}.`,
    )
  }
  return positionals as unknown as { readonly [K in keyof N]: string }
}

/** Writes a line for whoever asked. */
export function say(text: string): void {
  process.stdout.write(`${withTyped(text)}\n`)
}

/** Writes a line beside the answer, which programs do not read. */
export function note(text: string): void {
  process.stderr.write(`${withTyped(text)}\n`)
}
