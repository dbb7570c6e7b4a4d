from src.command_line import program

if __name__ == "__main__":
    program("few_shot", "src.commands.few_shot:few_shot")
